// What a user has asked for on one photograph, as values that never change, and the history of them.
import { freeColour } from './colours.js';
import { InputError } from './types.js';

/**
 * @typedef {import('./types.js').Scene} Scene
 * @typedef {import('./types.js').Item} Item
 * @typedef {import('./types.js').History} History
 * @typedef {import('./types.js').Box} Box
 */

export const MOST_OBJECTS = 200;
export const MOST_POINTS = 64;
const LONGEST_NAME = 40;
const MOST_STEPS = 100;

/** @returns {import('./types.js').Prompt} */
export const noPrompt = () => ({ points: [], labels: [], box: null });

/**
 * @param {number} number
 * @param {string[]} taken   colours of the other objects
 * @returns {Item}
 */
function makeObject(number, taken) {
  const colour = freeColour(taken);
  return { id: number, name: 'object ' + number, colour, prompt: noPrompt(), choice: null, strokes: [], base: null };
}

/** @returns {Scene} */
export const emptyScene = () => ({ objects: [makeObject(1, [])], active: 1, made: 1, regions: [] });

/** @param {Item} item */
export const hasPrompt = (item) => item.prompt.points.length > 0 || item.prompt.box !== null;

/**
 * Whether an object has nothing that could give a mask.
 *
 * @param {Item} item
 */
export const isEmpty = (item) => !hasPrompt(item) && !item.base && !item.strokes.length;

/** @param {Scene} scene */
export const isBlank = (scene) => scene.objects.length === 1 && isEmpty(scene.objects[0]) && !scene.regions.length;

/**
 * @param {Scene} scene
 * @returns {Item}
 */
export function activeOf(scene) {
  return scene.objects.find((item) => item.id === scene.active) ?? scene.objects[scene.objects.length - 1];
}

/**
 * @param {Scene} scene
 * @param {number} id
 * @param {(item: Item) => Item} change
 * @returns {Scene}
 */
function changed(scene, id, change) {
  return { ...scene, objects: scene.objects.map((item) => (item.id === id ? change(item) : item)) };
}

/**
 * One more point for the active object.
 *
 * @param {Scene} scene
 * @param {number} x
 * @param {number} y
 * @param {0|1} label   1: on the object, 0: on the background
 */
export function addPoint(scene, x, y, label) {
  const item = activeOf(scene), { prompt } = item;
  if (prompt.points.length >= MOST_POINTS) {
    throw new InputError('An object takes ' + MOST_POINTS + ' points at most: delete some, or start a new object.');
  }
  return changed(scene, item.id, () => ({
    ...item, choice: null, prompt: { ...prompt, points: [...prompt.points, [x, y]], labels: [...prompt.labels, label] },
  }));
}

/**
 * @param {Scene} scene
 * @param {number} index   of a point of the active object
 * @param {number} x
 * @param {number} y
 */
export function movePoint(scene, index, x, y) {
  const item = activeOf(scene);
  /** @type {import('./types.js').Point[]} */
  const points = item.prompt.points.map((point, at) => (at === index ? [x, y] : point));
  return changed(scene, item.id, () => ({ ...item, choice: null, prompt: { ...item.prompt, points } }));
}

/**
 * @param {Scene} scene
 * @param {number} index   of a point of the active object
 */
export function deletePoint(scene, index) {
  const item = activeOf(scene), kept = (/** @type {unknown} */ _, /** @type {number} */ at) => at !== index;
  const prompt = { ...item.prompt, points: item.prompt.points.filter(kept), labels: item.prompt.labels.filter(kept) };
  return changed(scene, item.id, () => ({ ...item, choice: null, prompt }));
}

/**
 * The box of the active object, from any two opposite corners.
 *
 * @param {Scene} scene
 * @param {Box} corners
 */
export function setBox(scene, [x0, y0, x1, y1]) {
  const item = activeOf(scene);
  /** @type {Box} */
  const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  if (box[2] - box[0] < 1 || box[3] - box[1] < 1) {
    throw new InputError('That box has no area: drag from one corner of the object to the opposite one.');
  }
  return changed(scene, item.id, () => ({ ...item, choice: null, prompt: { ...item.prompt, box } }));
}

/** @param {Scene} scene */
export function deleteBox(scene) {
  const item = activeOf(scene);
  return changed(scene, item.id, () => ({ ...item, choice: null, prompt: { ...item.prompt, box: null } }));
}

/**
 * Which of the three masks the active object has.
 *
 * @param {Scene} scene
 * @param {0|1|2} choice
 */
export function choose(scene, choice) {
  const item = activeOf(scene);
  if (!hasPrompt(item)) throw new InputError('There is no mask to choose yet: click on the object first.');
  return changed(scene, item.id, () => ({ ...item, choice }));
}

/**
 * @param {Scene} scene
 * @param {import('./types.js').Stroke} stroke
 */
export function addStroke(scene, stroke) {
  const item = activeOf(scene);
  if (stroke.erase && isEmpty(item)) throw new InputError('There is nothing to erase yet: click on an object first.');
  return changed(scene, item.id, () => ({ ...item, strokes: [...item.strokes, stroke] }));
}

/**
 * A new object, which is then active. Where the active one is empty, that one is the new one.
 *
 * @param {Scene} scene
 * @returns {Scene}
 */
export function newObject(scene) {
  if (isEmpty(activeOf(scene))) return scene;
  return withObjects(scene, [{}]);
}

/**
 * More objects: what is not given of each is that of a new one. The last one is active.
 *
 * @param {Scene} scene
 * @param {Partial<Item>[]} more
 * @returns {Scene}
 */
export function withObjects(scene, more) {
  const objects = scene.objects.filter((item) => !(isEmpty(item) && more.some((one) => one.base || one.prompt)));
  if (objects.length + more.length > MOST_OBJECTS) {
    throw new InputError('There can be ' + MOST_OBJECTS + ' objects at most: remove some first.');
  }
  let made = scene.made;
  for (const one of more) {
    made++;
    const item = makeObject(made, objects.map((each) => each.colour));
    objects.push({ ...item, ...one, id: item.id, name: one.name ? tidy(one.name) || item.name : item.name });
  }
  return { ...scene, objects, made, active: more.length ? made : scene.active };
}

/**
 * The regions `indices` of everything mode become objects.
 *
 * @param {Scene} scene
 * @param {number[]} indices
 */
export function adoptRegions(scene, indices) {
  const taken = indices.map((index) => ({ base: scene.regions[index].mask }));
  const regions = scene.regions.filter((_, index) => !indices.includes(index));
  return { ...withObjects(scene, taken), regions };
}

/**
 * Without an object; after the last one there is a new, empty one.
 *
 * @param {Scene} scene
 * @param {number} id
 * @returns {Scene}
 */
export function removeObject(scene, id) {
  const at = scene.objects.findIndex((item) => item.id === id);
  const objects = scene.objects.filter((item) => item.id !== id);
  if (!objects.length) {
    const made = scene.made + 1;
    return { ...scene, objects: [makeObject(made, [])], active: made, made };
  }
  const active = scene.active === id ? objects[Math.min(at, objects.length - 1)].id : scene.active;
  return { ...scene, objects, active };
}

/**
 * @param {Scene} scene
 * @param {number} id
 * @param {string} name
 */
export function rename(scene, id, name) {
  const tidied = tidy(name);
  if (!tidied) throw new InputError('A name needs at least one letter.');
  return changed(scene, id, (item) => (item.name === tidied ? item : { ...item, name: tidied }));
}

/**
 * A name of one line; halves of characters, which no file could hold, are left out.
 *
 * @param {string} name
 */
function tidy(name) {
  const words = name.replace(/\p{Surrogate}/gu, '').split(/\s+/).filter(Boolean);
  return [...words.join(' ')].slice(0, LONGEST_NAME).join('').trim();
}

/**
 * What everything mode found.
 *
 * @param {Scene} scene
 * @param {import('./types.js').Region[]} regions
 */
export const setRegions = (scene, regions) => ({ ...scene, regions });

/**
 * @param {Scene} [present]
 * @returns {History}
 */
export const newHistory = (present = emptyScene()) => ({ present, past: [], future: [] });

/**
 * `scene` is the present, and what was undone is gone.
 *
 * @param {History} history
 * @param {Scene} scene
 * @returns {History}
 */
export function withStep(history, scene) {
  if (scene === history.present) return history;
  return { present: scene, past: [...history.past, history.present].slice(-MOST_STEPS), future: [] };
}

/**
 * Another active object: a matter of view, and nothing to undo.
 *
 * @param {History} history
 * @param {number} id
 */
export const select = (history, id) => ({ ...history, present: { ...history.present, active: id } });

/**
 * @param {History} history
 * @returns {History}
 */
export function undo({ present, past, future }) {
  if (!past.length) return { present, past, future };
  return { present: past[past.length - 1], past: past.slice(0, -1), future: [present, ...future] };
}

/**
 * @param {History} history
 * @returns {History}
 */
export function redo({ present, past, future }) {
  if (!future.length) return { present, past, future };
  return { present: future[0], past: [...past, present], future: future.slice(1) };
}
