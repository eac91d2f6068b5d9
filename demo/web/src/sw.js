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
      if (!await cache.match(url)) await cache.put(url, await fetched(url));
    }
    return 'kept';
  } catch {
    return 'failed';
  }
}

worker.addEventListener('fetch', (/** @type {any} */ event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== 'GET' || url.origin !== worker.location.origin) return;
  if (url.href.startsWith(worker.registration.scope)) event.respondWith(answer(url, event.request.mode === 'navigate'));
});

/**
 * @param {URL} url
 * @param {boolean} page
 */
async function answer(url, page) {
  url.search = url.hash = '';
  if (page && url.href === worker.registration.scope) url.pathname += 'index.html';
  const cache = await caches.open(CACHE), kept = await cache.match(url.href);
  if (kept) return isolated(kept);
  const response = await fetched(url.href, false);
  const file = url.href.slice(worker.registration.scope.length);
  if (response.ok && (files.includes(file) || optional.includes(file))) await cache.put(url.href, response.clone());
  return isolated(response);
}

/**
 * @param {string} url
 * @param {boolean} [must]   fail where there is no such file
 */
async function fetched(url, must = true) {
  const response = await fetch(url, { cache: 'no-cache', credentials: 'same-origin' });
  if (must && !response.ok) throw new Error(url);
  return response;
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
