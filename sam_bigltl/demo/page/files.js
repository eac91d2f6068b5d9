// Photographs from files, by dropping, pasting and choosing, and the examples.
import { button, h } from './dom.js';
import { lineOf } from './work.js';

/** @param {import('./app.js').App} app */
export function makeFiles(app) {
  const { work, root } = app;
  const input = h('input', { type: 'file', accept: 'image/*,.heic,.heif', hidden: true, 'aria-label': 'Photograph' });
  input.onchange = () => {
    take(input.files);
    input.value = '';
  };
  const open = button('open', 'Open photo', 'Open a photograph from this machine', () => input.click(), 'primary open');
  const webcam = button('camera', 'Webcam', 'Take a photograph with the camera', () => app.webcam.start());
  const examples = work.info.examples.map((example) => h('button', {
    type: 'button', class: 'example', onclick: () => work.openExample(example),
  }, h('img', { src: example.thumbnail, alt: '', loading: 'lazy' }), h('span', {}, example.title)));
  const before = h('div', { class: 'buttons', hidden: true });
  const hint = h('div', { class: 'hint' },
    h('p', { class: 'call' },
      h('span', { class: 'mouse' }, 'Drop a photograph anywhere on this page, paste one, or open one.'),
      h('span', { class: 'finger' }, 'Open a photograph, take one, or try an example.')),
    h('p', {},
      h('span', { class: 'mouse' }, 'Then click on an object, or drag a box around it: its mask appears at once.'),
      h('span', { class: 'finger' }, 'Then tap on an object, or draw a box around it: its mask appears at once.')),
    before,
    examples.length > 0 && h('div', { class: 'examples', role: 'group', 'aria-label': 'Examples' }, ...examples));
  const veil = h('div', { class: 'veil', hidden: true }, h('p', {}, 'Drop the photograph to open it'));
  const element = h('div', { class: 'group files' }, open, webcam, input);

  /** @param {FileList|File[]|null|undefined} files */
  function take(files) {
    const isPhoto = (/** @type {File} */ each) => each.type.startsWith('image/') || /\.hei[cf]$/i.test(each.name);
    const file = [...files ?? []].find(isPhoto) ?? files?.[0];
    if (!file) return;
    app.webcam.stop();
    if (file.name.endsWith('.json')) app.importFile(file);
    else work.open(file, file.name || 'pasted.png');
  }

  /** @param {import('./session.js').Row[]} rows   what other tabs have left */
  function offer(rows) {
    before.hidden = !rows.length;
    before.replaceChildren(...rows.slice(0, 1).map((row) => h('button', {
      type: 'button', class: 'go-on', onclick: async () => {
        const saved = await work.session.read(row.id);
        if (!saved) return work.say('That photograph is no longer kept by the browser.', true);
        work.restore(saved);
        work.session.begin(work.saved(), saved.blob);
      },
    }, 'Go on with ' + row.photo.name + ' (' + new Date(row.time).toLocaleDateString() + ')')));
  }

  // Anywhere on the page: what is dropped beside a target would make the browser leave the page.
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes('Files') ?? false;
  let inside = 0;
  const listeners = {
    dragenter: (/** @type {DragEvent} */ event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      inside++;
      veil.hidden = false;
    },
    dragover: (/** @type {DragEvent} */ event) => { if (hasFiles(event)) event.preventDefault(); },
    dragleave: () => { inside = Math.max(0, inside - 1); veil.hidden = inside === 0; },
    drop: (/** @type {DragEvent} */ event) => {
      inside = 0;
      veil.hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      take(event.dataTransfer?.files);
    },
    paste: (/** @type {ClipboardEvent} */ event) => {
      const files = [...event.clipboardData?.files ?? []].filter((each) => each.type.startsWith('image/'));
      if (!files.length || !root.isConnected) return;
      event.preventDefault();
      take(files);
    },
  };
  for (const [name, run] of Object.entries(listeners)) {
    window.addEventListener(name, (event) => {
      try {
        run(/** @type {any} */ (event));
      } catch (error) {
        work.say(lineOf(error), true);
      }
    });
  }

  function update() {
    hint.hidden = Boolean(work.photo) || app.webcam.isOpen();
    for (const each of examples) each.disabled = Boolean(work.opening);
  }
  return { element, hint, veil, take, offer, update };
}
