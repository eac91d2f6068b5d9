// What a user takes away, at the photograph's own size, and what can be brought in again.
import { button, checkbox, h, help, panel, slider } from './dom.js';
import { exportFiles, importCoco } from './formats/index.js';
import { fullObjects } from './full_size.js';
import { activeOf, isEmpty, withObjects } from './scene.js';
import { lineOf } from './work.js';

/** @type {[string, string, string][]} */
const ONE = [
  ['mask', 'Mask', 'The mask of the chosen object, a PNG'],
  ['cutout', 'Cut-out', 'The chosen object alone, the rest transparent'],
];
/** @type {[string, string, string][]} */
const ALL = [
  ['coco', 'COCO', 'All objects and regions as COCO JSON'],
  ['yolo', 'YOLO', 'All objects as polygons for YOLO-seg'],
  ['labelme', 'labelme', 'All objects as polygons for labelme'],
  ['label_studio', 'Label Studio', 'All objects as brush labels for Label Studio'],
  ['palette', 'Palette PNG', 'All objects in one picture of numbered colours'],
  ['cutouts', 'Cut-outs (ZIP)', 'Every object alone, in one ZIP'],
];

/** @param {import('./app.js').App} app */
export function makeExports(app) {
  const { work } = app;
  const options = { polygons: false, tolerance: 1 };
  const polygons = checkbox('COCO with polygons instead of RLE', (checked) => { options.polygons = checked; });
  const toleranceHelp = help('tolerance',
    'How many pixels a polygon may leave the outline, so that it has fewer corners.');
  const tolerance = slider('Polygons: tolerance in px', { min: 0, max: 10, step: 0.5, value: options.tolerance },
    (value) => { options.tolerance = value; }, { mark: toleranceHelp.mark, digits: 1 });
  const buttons = [...ONE, ...ALL].map(([kind, label, title]) => {
    const made = h('button', { type: 'button', title, onclick: () => save(kind) }, label);
    made.dataset.export = kind;
    return made;
  });
  const busy = h('p', { class: 'busy', hidden: true, role: 'status' }, h('i', { class: 'spinner' }), h('span', {}));
  const cancel = h('button', { type: 'button', class: 'stop', onclick: () => stopper?.abort() }, 'Stop');
  const input = h('input', { type: 'file', accept: '.json,application/json', hidden: true, 'aria-label': 'COCO JSON' });
  input.onchange = () => {
    const file = input.files?.[0];
    input.value = '';
    if (file) bring(file);
  };
  const code = h('pre', { class: 'code', tabIndex: 0, 'aria-label': 'Python code' });
  const copy = button('', 'Copy', 'Copy the code', async () => {
    try {
      await navigator.clipboard.writeText(code.textContent ?? '');
      work.say('The code is in the clipboard.');
    } catch {
      work.say('The browser does not give the clipboard: select the code and copy it.', true);
    }
  });
  const python = h('details', { class: 'python', ontoggle: () => refreshCode() },
    h('summary', {}, 'The same mask from Python'), code, copy);
  const element = panel('Export', true,
    h('div', { class: 'buttons grid' }, ...buttons.slice(0, ONE.length)),
    h('div', { class: 'buttons grid' }, ...buttons.slice(ONE.length)),
    h('div', { class: 'line' }, busy, cancel),
    h('details', { class: 'options' }, h('summary', {}, 'Options'),
      polygons.element, tolerance.element, toleranceHelp.panel), python,
    h('div', { class: 'buttons' }, h('button', {
      type: 'button', title: 'Go on with the objects of a COCO JSON of this photograph', onclick: () => input.click(),
    }, 'Import COCO'), input));
  /** @type {AbortController|null} */
  let stopper = null;
  /** @type {unknown[]} */
  let written = [];

  /** @param {string} kind */
  async function save(kind) {
    const { photo, info, scene } = work;
    if (!photo || stopper) return;
    const one = ONE.some(([name]) => name === kind), chosen = one ? [activeOf(scene)] : scene.objects;
    const items = chosen.filter((item) => !isEmpty(item));
    if (!items.length && !(kind === 'coco' && scene.regions.length)) {
      const what = one ? activeOf(scene).name + ' has no mask yet' : 'There is nothing to export yet';
      return work.say(what + ': click on the object first.', true);
    }
    const { signal } = stopper = new AbortController();
    work.say('');
    update();
    try {
      const objects = await fullObjects(work, items, signal, (at) => {
        busy.children[1].textContent = 'full-size mask ' + at + ' of ' + items.length;
      });
      const scenery = { photo, objects, regions: scene.regions, pixels: () => app.pixels(), info };
      const file = await exportFiles(kind, scenery, options);
      if (!signal.aborted) download(file.blob, file.name);
    } catch (error) {
      if (signal.aborted) work.say('The export was stopped.');
      else work.say('Nothing was exported. ' + lineOf(error), true, () => save(kind));
    } finally {
      stopper = null;
      update();
    }
  }

  /** @param {File} file */
  async function bring(file) {
    const { photo } = work;
    if (!photo) return work.say('Open the photograph first, and then its COCO JSON.', true);
    try {
      const { objects, message } = importCoco(await file.text(), photo);
      work.act((scene) => withObjects(scene, objects));
      if (!work.notice) work.say(message);
    } catch (error) {
      work.say(file.name + ' was not imported. ' + lineOf(error), true);
    }
  }

  async function refreshCode() {
    const { photo, scene, settings, info } = work, item = activeOf(scene);
    if (!python.open || !photo) return;
    const shown = work.shown(item), now = [item, photo, settings.keepRatio, shown?.index];
    if (now.every((each, at) => each === written[at])) return;
    written = now;
    copy.disabled = !shown;
    if (!shown) {
      code.textContent = '# Click on an object: the code for its mask comes here.';
      return;
    }
    const { mask, ious, index } = shown;
    const object = { name: item.name, mask, iou: ious[index], prompt: item.prompt, choice: index };
    const about = { ...info, keep_ratio: settings.keepRatio };
    const data = { photo, objects: [object], regions: [], pixels: () => app.pixels(), info: about };
    const file = await exportFiles('python', data, options);
    const text = await file.blob.text();
    if (written !== now) return; // something newer is being written
    code.textContent = text.trimEnd() + (item.strokes.length ? '\n# and then the strokes of the brush' : '');
  }

  function update() {
    const running = stopper !== null;
    for (const each of buttons) each.disabled = !work.photo || running;
    busy.hidden = cancel.hidden = !running;
    refreshCode();
  }
  return { element, update, bring };
}

/**
 * @param {Blob} blob
 * @param {string} name
 */
function download(blob, name) {
  const link = h('a', { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
