// The service worker. `vite build` writes above this what was built: the files to keep, those to keep where they are
// used, and the hash of all.

const worker = /** @type {any} */ (self);
/** @type {{version: string, files: string[], optional: string[]}} */
const { version, files, optional } = worker.built;
const CACHE = 'sam_bigltl ' + version;

worker.addEventListener('install', () => {
  // A newer version waits until the pages of the older one are closed, whose files it would take away.
  if (!worker.registration.active) worker.skipWaiting();
});

worker.addEventListener('activate', (/** @type {any} */ event) => event.waitUntil(activate()));

async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith('sam_bigltl ') && name !== CACHE) await caches.delete(name);
  }
  await worker.clients.claim();
}

worker.addEventListener('message', (/** @type {any} */ event) => {
  if (event.data === 'keep') event.waitUntil(keep().then((done) => event.ports[0].postMessage(done)));
});

/** Fetch what is not here yet. */
async function keep() {
  try {
    const cache = await caches.open(CACHE);
    for (const file of files) {
      const url = new URL(file, worker.registration.scope).href;
      if (!await cache.match(url)) await stored(cache, url);
    }
    return 'kept';
  } catch {
    return 'failed';
  }
}

/** @type {Map<string, Promise<void>>} */
const coming = new Map();

/**
 * Fetch a file into the cache, once, also where the page asks for it meanwhile.
 *
 * @param {Cache} cache
 * @param {string} url
 */
function stored(cache, url) {
  const under = coming.get(url) ?? fetched(url).then((response) => {
    if (!response.ok) throw new Error(url);
    return cache.put(url, response);
  }).finally(() => coming.delete(url));
  coming.set(url, under);
  return under;
}

worker.addEventListener('fetch', (/** @type {any} */ event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== 'GET' || url.origin !== worker.location.origin) return;
  if (url.href.startsWith(worker.registration.scope)) event.respondWith(answer(url));
});

/** @param {URL} url */
async function answer(url) {
  url.search = url.hash = '';
  if (url.href === worker.registration.scope) url.pathname += 'index.html';
  const cache = await caches.open(CACHE), file = url.href.slice(worker.registration.scope.length);
  if (files.includes(file) || optional.includes(file)) {
    try {
      if (!await cache.match(url.href)) await stored(cache, url.href);
      const kept = await cache.match(url.href);
      if (kept) return isolated(kept);
    } catch {
      // no room, or no such file any more: the host answers
    }
  }
  return isolated(await fetched(url.href));
}

/** @param {string} url */
function fetched(url) {
  return fetch(url, { cache: 'no-cache', credentials: 'same-origin' });
}

/** @param {Response} response */
function isolated(response) {
  if (!response.body || response.type === 'opaqueredirect') return response;
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
