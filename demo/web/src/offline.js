// The service worker keeps the page's files for work offline, and isolates the page (COOP and COEP), without which
// browsers give no threads. Hosts that send these headers themselves spare the one reload at the first visit.

const RELOADED = 'sam_bigltl.isolated';

/**
 * @returns {Promise<{reloads: boolean, kept: Promise<boolean>}>}   reloads: the page is about to be loaded again; kept:
 *   all files are here
 */
export async function stayOffline() {
  const never = { reloads: false, kept: Promise.resolve(false) };
  if (!('serviceWorker' in navigator) || import.meta.env.DEV) return never;
  try {
    await navigator.serviceWorker.register('./sw.js', { updateViaCache: 'none' });
    const registration = await navigator.serviceWorker.ready;
    if (!navigator.serviceWorker.controller) await controlled();
    if (!self.crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
      sessionStorage.setItem(RELOADED, 'yes'); // once: some browsers cannot be isolated
      location.reload();
      return { ...never, reloads: true };
    }
    return { reloads: false, kept: keepFiles(registration) };
  } catch {
    return never; // private windows and insecure origins have no service workers: all works but this
  }
}

/** The worker serves this page, too: at its first visit it comes after the page. */
function controlled() {
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener('controllerchange', resolve, { once: true });
    setTimeout(resolve, 3000);
  });
}

/**
 * @param {ServiceWorkerRegistration} registration
 * @returns {Promise<boolean>}
 */
function keepFiles({ active }) {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => resolve(data === 'kept');
    if (active) active.postMessage('keep', [port2]);
    else resolve(false);
  });
}
