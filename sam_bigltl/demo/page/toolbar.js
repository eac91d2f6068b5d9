// What the next click does, undo and redo, zoom.
import { button, h } from './dom.js';
import { newObject } from './scene.js';
import { isFit } from './view.js';

/** @type {[import('./types.js').Mode, string, string][]} */
const MODES = [
  ['object', 'Object', 'Clicks are points on the object; a drag is a box (O)'],
  ['background', 'Background', 'Clicks are points that are not on the object (B, or the right mouse button)'],
  ['box', 'Box', 'Two clicks, or a drag, are corners of a box (R)'],
  ['add', 'Brush', 'Paint what the mask lacks (D)'],
  ['erase', 'Eraser', 'Paint away what the mask has too much (E)'],
  ['move', 'Move', 'Drags move the photograph (H, or hold the space bar)'],
];

/** @param {import('./app.js').App} app */
export function makeToolbar(app) {
  const { work, stage } = app;
  const modes = MODES.map(([mode, label, title]) => {
    const made = button(mode, label, title, () => stage.setMode(mode), 'mode');
    made.role = 'radio';
    made.dataset.mode = mode;
    return made;
  });
  const radius = h('input', {
    type: 'range', min: 2, max: 60, value: stage.radius, 'aria-label': 'Size of the brush',
    title: 'Size of the brush ([ and ])',
    oninput: () => { stage.radius = radius.valueAsNumber; stage.draw(); },
  });
  const brush = h('label', { class: 'brush', hidden: true }, h('span', {}, 'Size'), radius);
  const undo = button('undo', 'Undo', 'Undo (Z)', () => work.undo(), 'icon');
  const redo = button('redo', 'Redo', 'Redo (Y)', () => work.redo(), 'icon');
  const fresh = button('new', 'New object', 'The next clicks are for another object (N)', () => work.act(newObject));
  /** @type {Element} */ (fresh.lastElementChild).textContent = 'New';
  const clear = button('clear', 'Clear', 'Remove everything that was done; undo brings it back (Shift + Backspace)',
    () => work.clear(), 'icon');
  const out = button('minus', 'Zoom out', 'Zoom out (-)', () => stage.zoom(1 / 1.5), 'icon');
  const into = button('plus', 'Zoom in', 'Zoom in (+)', () => stage.zoom(1.5), 'icon');
  const fit = button('fit', 'Whole photograph', 'The whole photograph (0)', () => stage.fit(), 'icon');
  const percent = h('span', { class: 'percent', title: 'Screen pixels for a pixel of the photograph' });
  const group = h('div', { class: 'group modes', role: 'radiogroup', 'aria-label': 'What a click does' }, ...modes);
  group.onkeydown = (event) => { // as in every group of radio buttons, arrows choose
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = modes.findIndex((each) => each.dataset.mode === stage.mode);
    if (!step) return;
    const next = modes[(at + step + modes.length) % modes.length];
    event.preventDefault();
    next.click();
    next.focus();
  };
  const element = h('div', { class: 'toolbar', role: 'toolbar', 'aria-label': 'Tools' }, group, brush,
    h('div', { class: 'group edits' }, undo, redo, fresh, clear),
    h('div', { class: 'group zoom' }, out, percent, into, fit));

  function update() {
    const { photo, history } = work, chosen = modes.some((each) => each.dataset.mode === stage.mode);
    modes.forEach((each, index) => {
      const checked = each.dataset.mode === stage.mode;
      each.ariaChecked = String(checked);
      each.tabIndex = checked || (!chosen && !index) ? 0 : -1;
      each.disabled = !photo;
    });
    brush.hidden = stage.mode !== 'add' && stage.mode !== 'erase';
    radius.valueAsNumber = stage.radius;
    undo.disabled = !history.past.length;
    redo.disabled = !history.future.length;
    fresh.disabled = clear.disabled = into.disabled = !photo;
    out.disabled = fit.disabled = !photo || isFit(stage.view, photo, stage.size);
    percent.textContent = photo ? Math.round(100 * stage.view.scale) + ' %' : '';
  }
  return { element, update };
}
