// Keys. None of them alone takes anything away.
import { h, panel } from './dom.js';
import { choose, newObject } from './scene.js';

const TEXT = new Set(['text', 'search', 'number', 'password', 'email', 'url', 'tel']);
const ROWS = [
  ['O  B  R', 'clicks on the object, on the background, corners of a box'],
  ['Shift + click', 'the other of object and background, once'],
  ['Right click', 'a background point; with the brush: erase'],
  ['D  E  [  ]', 'brush, eraser, their size'],
  ['H, Space + drag', 'move the photograph'],
  ['Wheel, +  -  0', 'zoom; the whole photograph'],
  ['1  2  3', 'choose a mask'],
  ['N', 'new object'],
  ['Z  Y', 'undo, redo'],
  ['Arrows, Enter', 'with the photograph in focus: move a cursor (Shift: by less), put a point there'],
  ['Shift + Delete', 'delete the chosen point'],
  ['Shift + Backspace', 'clear everything (undo brings it back)'],
  ['Esc', 'forget what was begun'],
];

/**
 * Whether a key that is pressed there is meant for what has the focus.
 *
 * @param {EventTarget|undefined} target
 */
export function isTyping(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return TEXT.has(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target.isContentEditable;
}

/** @param {import('./app.js').App} app */
export function makeKeys(app) {
  const { work, stage, root } = app;
  /** @type {Record<string, () => void>} */
  const plain = {
    o: () => stage.setMode('object'), b: () => stage.setMode(stage.mode === 'background' ? 'object' : 'background'),
    r: () => stage.setMode('box'), d: () => stage.setMode('add'), e: () => stage.setMode('erase'),
    h: () => stage.setMode('move'),
    n: () => work.act(newObject), z: () => work.undo(), y: () => work.redo(),
    '+': () => stage.zoom(1.5), '=': () => stage.zoom(1.5), '-': () => stage.zoom(1 / 1.5), 0: () => stage.fit(),
    '[': () => size(1 / 1.25), ']': () => size(1.25),
    1: () => work.act((scene) => choose(scene, 0)), 2: () => work.act((scene) => choose(scene, 1)),
    3: () => work.act((scene) => choose(scene, 2)), escape: () => escape(),
  };
  /** @type {Record<string, () => void>} */
  const shifted = {
    backspace: () => work.clear(), delete: () => stage.deleteSelected(), z: () => work.redo(), '+': plain['+'],
  };

  const size = (/** @type {number} */ factor) => {
    stage.radius = Math.min(60, Math.max(2, stage.radius * factor));
    stage.onChange();
    stage.draw();
  };
  const escape = () => {
    if (app.webcam.isOpen()) app.webcam.stop();
    stage.cancel();
  };

  document.addEventListener('keydown', (event) => {
    const target = event.composedPath()[0], key = event.key.toLowerCase();
    if (!root.isConnected || event.altKey || event.isComposing || isTyping(target)) return;
    const chord = event.ctrlKey || event.metaKey;
    if (chord && key !== 'z' && key !== 'y') return;
    if (!work.photo && key !== 'escape') return;
    if (target === stage.canvas && !chord && onStage(event)) return event.preventDefault();
    if (key === ' ' && !(target instanceof HTMLButtonElement || target instanceof HTMLInputElement)) {
      stage.space = true;
      return event.preventDefault();
    }
    const run = event.shiftKey ? shifted[key] ?? (/^[a-z]$/.test(key) ? undefined : plain[key]) : plain[key];
    if (!run) return;
    event.preventDefault();
    run();
  });
  document.addEventListener('keyup', (event) => { if (event.key === ' ') stage.space = false; });

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key is one of the cursor's
   */
  function onStage({ key, shiftKey }) {
    const step = shiftKey ? 2 : 16;
    /** @type {Record<string, [number, number]>} */
    const steps = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (steps[key]) stage.moveCursor(...steps[key]);
    else if (key === 'Enter') stage.enter(shiftKey);
    else return false;
    if (stage.cursor) app.say('Cursor at ' + stage.cursor.map(Math.round).join(', '));
    return true;
  }

  const element = panel('Keys', false, h('dl', { class: 'keys' },
    ...ROWS.flatMap(([keys, meaning]) => [h('dt', {}, keys), h('dd', {}, meaning)])));
  element.classList.add('last');
  return { element, update() {} };
}
