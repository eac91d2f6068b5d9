// The page: its parts, and what holds them together.
import { makeCandidates } from './candidates.js';
import { makeComparison } from './comparison.js';
import { h } from './dom.js';
import { makeEncoder, makeLook } from './encoder.js';
import { makeEverything } from './everything.js';
import { makeExports } from './exports.js';
import { makeFiles } from './files.js';
import { makeKeys } from './keys.js';
import { makeNotices, waitingFor } from './notices.js';
import { makeObjects } from './objects.js';
import { activeOf } from './scene.js';
import { Session } from './session.js';
import { listen } from './pointers.js';
import { Stage } from './stage.js';
import { makeToolbar } from './toolbar.js';
import { followTheme } from './theme.js';
import { makeWebcam } from './webcam.js';
import { lineOf, Work } from './work.js';

/**
 * What the parts of the page share.
 *
 * @typedef {object} App
 * @property {HTMLElement} root
 * @property {Work} work
 * @property {Stage} stage
 * @property {import('./stage.js').Look} look   how masks are shown
 * @property {{start: () => Promise<void>, stop: () => void, isOpen: () => boolean}} webcam
 * @property {number} latency   milliseconds from the last click to its mask
 * @property {() => void} changed   something is to be shown anew
 * @property {(text: string) => void} say   to screen readers
 * @property {(file: File) => void} importFile
 * @property {() => Promise<ImageBitmap>} pixels   of the photograph, all of them
 */

/**
 * Put the page into `root`.
 *
 * @param {HTMLElement} root   an empty element
 * @param {import('./types.js').Backend} backend
 * @returns {Promise<App>}
 */
export async function mount(root, backend) {
  const shadow = root.shadowRoot ?? root.attachShadow({ mode: 'open' }); // styles of the page around stay outside
  const page = h('div', { class: 'page', lang: 'en' });
  const sheet = h('link', { rel: 'stylesheet', href: new URL('./page.css', import.meta.url).href });
  const styled = new Promise((resolve) => { sheet.onload = sheet.onerror = resolve; });
  shadow.replaceChildren(sheet, page);
  const setTheme = followTheme(page);
  const [info, session] = await Promise.all([infoOf(backend, page), Session.start(), styled]);
  setTheme();
  return build(root, page, backend, info, session);
}

/**
 * The backend's description, as soon as it answers.
 *
 * @param {import('./types.js').Backend} backend
 * @param {HTMLElement} page
 * @returns {Promise<import('./types.js').Info>}
 */
async function infoOf(backend, page) {
  for (;;) {
    try {
      return await backend.info();
    } catch (error) {
      page.replaceChildren(h('p', { class: 'call', role: 'alert' }, lineOf(error) + ' Trying again.'));
      await new Promise((resolve) => setTimeout(resolve, 1500));
    }
  }
}

/**
 * @param {HTMLElement} root
 * @param {HTMLElement} page
 * @param {import('./types.js').Backend} backend
 * @param {import('./types.js').Info} info
 * @param {Session} session
 * @returns {Promise<App>}
 */
async function build(root, page, backend, info, session) {
  let drawn = 0;
  const changed = () => { drawn ||= requestAnimationFrame(() => { drawn = 0; update(); }); };
  const work = new Work(backend, info, session, changed);
  const canvas = h('canvas', {
    class: 'view', tabIndex: 0, role: 'application', 'aria-roledescription': 'photograph',
    'aria-label': 'Photograph: arrow keys move a cursor, Enter places a point',
  });
  const bin = h('button', { type: 'button', class: 'bin', hidden: true }, 'Delete');
  const element = h('div', { class: 'stage' }, canvas, bin);
  const stage = new Stage(element, canvas, work, changed);
  bin.onclick = () => {
    stage.deleteSelected();
    canvas.focus();
  };
  listen(canvas, stage);
  const spoken = h('div', { class: 'unseen', 'aria-live': 'polite' });
  /** @type {App} */
  const app = {
    root, work, stage, look: stage.look, latency: 0, changed,
    webcam: /** @type {any} */ (null), importFile: () => {},
    say: (text) => { spoken.textContent = text; },
    pixels: async () => {
      const { picture } = stage;
      if (!picture) throw new Error('The photograph is not shown yet: try again.');
      return picture.full ?? picture.small;
    },
  };
  const webcam = makeWebcam(app);
  app.webcam = webcam;
  const toolbar = makeToolbar(app), files = makeFiles(app), objects = makeObjects(app);
  const candidates = makeCandidates(app), look = makeLook(app), encoder = makeEncoder(app);
  const everything = makeEverything(app), exports = makeExports(app);
  const notices = makeNotices(app), comparison = makeComparison(app), keys = makeKeys(app);
  const parts = [toolbar, files, objects, candidates, look, encoder, everything, exports, notices, comparison, keys];
  app.importFile = exports.bring;
  element.append(files.hint, webcam.element, notices.busy);

  page.replaceChildren(
    h('header', {},
      h('div', { class: 'title' }, h('h1', {}, 'Segment anything'), h('p', {},
        'Click on an object and get its mask, from a model that spends its large blocks only where it matters. ',
        h('a', { href: info.home, target: '_blank', rel: 'noopener' }, 'About the project'))),
      files.element),
    h('main', {},
      h('div', { class: 'desk' }, toolbar.element, notices.notice, element,
        h('div', { class: 'below' }, candidates.element, look.element), notices.status, comparison.element),
      h('aside', { 'aria-label': 'Panels' },
        h('div', { class: 'column' }, objects.element, encoder.element, keys.element),
        h('div', { class: 'column' }, everything.element, exports.element))),
    files.veil, spoken);

  const clock = timer(app);
  function update() {
    element.classList.toggle('empty', !work.photo && !webcam.isOpen());
    canvas.hidden = !work.photo || webcam.isOpen();
    page.classList.toggle('blank', !work.photo);
    for (const part of parts) part.update();
    stage.update();
    const place = stage.selectionPlace;
    bin.hidden = !place;
    if (place) {
      bin.textContent = stage.selected?.kind === 'point' ? 'Delete point' : 'Delete box';
      bin.style.left = Math.min(Math.max(place[0], 60), stage.size.width - 60) + 'px';
      bin.style.top = (place[1] > 60 ? place[1] - 58 : place[1] + 18) + 'px';
    }
    clock();
    root.dataset.state = waitingFor(work, stage) || work.answers.waiting || work.progress ? 'busy' : 'idle';
    root.dataset.photo = work.photo?.name ?? '';
  }

  for (const name of ['pagehide', 'visibilitychange']) window.addEventListener(name, () => session.flush(), true);
  Object.assign(root, { app }); // for scripts, and for whoever looks into a fault
  const saved = await session.restore();
  if (saved) work.restore(saved);
  else session.others().then(files.offer);
  update();
  return app;
}

/**
 * Measures the time from a click to its mask.
 *
 * @param {App} app
 */
function timer(app) {
  const { work, root } = app;
  /** @type {unknown} */
  let prompt = null;
  let since = 0;
  return () => {
    const item = activeOf(work.scene), shown = work.photo && work.shown(item);
    if (item.prompt !== prompt) {
      prompt = item.prompt;
      since = shown?.fresh ? 0 : performance.now();
    } else if (since && shown?.fresh) {
      app.latency = Math.round(performance.now() - since);
      root.dataset.latencies = (root.dataset.latencies ?? '') + ' ' + app.latency;
      since = 0;
      work.onChange();
    }
  };
}
