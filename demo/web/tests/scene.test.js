import { expect, test } from 'vitest';
import { colourOf } from '../../../sam_bigltl/demo/page/colours.js';
import * as scenes from '../../../sam_bigltl/demo/page/scene.js';

const { activeOf, addPoint, emptyScene, newHistory, newObject, redo, undo, withStep } = scenes;
const mask = { width: 4, height: 4, counts: '04' };

test('points and a box belong to the active object, and to it alone', () => {
  let scene = addPoint(emptyScene(), 10, 20, 1);
  scene = newObject(scene);
  scene = scenes.setBox(addPoint(scene, 5, 6, 0), [50, 40, 30, 20]);
  expect(scene.objects.map(({ prompt }) => prompt)).toEqual([
    { points: [[10, 20]], labels: [1], box: null }, { points: [[5, 6]], labels: [0], box: [30, 20, 50, 40] },
  ]);
  expect(() => scenes.setBox(scene, [1, 1, 1.5, 9])).toThrow('no area');
});

test('points are moved and deleted, and the choice of a mask ends with its prompt', () => {
  let scene = addPoint(addPoint(emptyScene(), 1, 2, 1), 3, 4, 0);
  scene = scenes.choose(scene, 2);
  scene = scenes.movePoint(scene, 1, 7, 8);
  expect(activeOf(scene)).toMatchObject({ choice: null, prompt: { points: [[1, 2], [7, 8]], labels: [1, 0] } });
  scene = scenes.deletePoint(scene, 0);
  expect(activeOf(scene).prompt).toEqual({ points: [[7, 8]], labels: [0], box: null });
});

test('no step changes the scene that it starts from', () => {
  const freeze = (value) => {
    if (value && typeof value === 'object') Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  let scene = freeze(emptyScene());
  const steps = [
    (at) => addPoint(at, 1, 2, 1), (at) => scenes.setBox(at, [0, 0, 9, 9]), (at) => scenes.movePoint(at, 0, 3, 3),
    (at) => scenes.addStroke(at, { erase: true, radius: 3, points: [[1, 1]] }), newObject,
    (at) => scenes.rename(at, 2, 'cat'), (at) => scenes.setRegions(at, [{ mask, iou: 1, stability: 1, point: [1, 1] }]),
    (at) => scenes.adoptRegions(at, [0]), (at) => scenes.deletePoint({ ...at, active: 1 }, 0), scenes.deleteBox,
    (at) => scenes.removeObject(at, 1),
  ];
  for (const step of steps) scene = freeze(step(scene));
});

test('no two of thirty objects have one colour, and a removed one gives its colour back', () => {
  let scene = emptyScene();
  for (let index = 0; index < 30; index++) scene = newObject(addPoint(scene, index, index, 1));
  expect(new Set(scene.objects.map(({ colour }) => colour)).size).toBe(31);
  scene = newObject(scenes.removeObject(scene, 3));
  expect(activeOf(newObject(addPoint(scene, 1, 1, 1))).colour).toBe(colourOf(2));
});

test('names are of one line, and of characters that every file can hold', () => {
  const named = (name) => scenes.rename(emptyScene(), 1, name).objects[0].name;
  expect(named('  big \n\t cat ')).toBe('big cat');
  expect(named('cat\ud800')).toBe('cat');
  expect(named('🐱'.repeat(60))).toBe('🐱'.repeat(40));
  expect(() => named(' \n')).toThrow('at least one letter');
});

test('undo and redo go through everything, regions too; what was undone ends with a new step', () => {
  const region = { mask, iou: 1, stability: 1, point: [1, 1] };
  let history = withStep(newHistory(), addPoint(emptyScene(), 1, 1, 1));
  history = withStep(history, scenes.setRegions(history.present, [region]));
  history = withStep(history, emptyScene()); // cleared
  history = undo(history);
  expect(history.present.regions).toEqual([region]);
  history = undo(history);
  expect(history.present.regions).toEqual([]);
  expect(redo(redo(redo(history))).present).toEqual(emptyScene());
  expect(withStep(history, newObject(history.present)).future).toEqual([]);
  expect(undo(newHistory()).present).toEqual(emptyScene());
  expect(scenes.select(history, 1).past).toBe(history.past); // a matter of view
});

test('imported objects and regions take the place of an empty one', () => {
  const scene = scenes.withObjects(emptyScene(), [{ name: 'cat', base: mask }, { name: '', base: mask }]);
  expect(scene.objects.map(({ name }) => name)).toEqual(['cat', 'object 3']);
  expect(scene.active).toBe(3);
  const regions = Array.from({ length: 3 }, () => ({ mask, iou: 1, stability: 1, point: [1, 1] }));
  const adopted = scenes.adoptRegions(scenes.setRegions(scene, regions), [1]);
  expect([adopted.objects.length, adopted.regions.length]).toEqual([3, 2]);
});

test('there is an end to points and to objects', () => {
  let scene = emptyScene();
  for (let index = 0; index < scenes.MOST_POINTS; index++) scene = addPoint(scene, index, 1, 1);
  expect(() => addPoint(scene, 1, 1, 1)).toThrow('64 points at most');
  const many = Array.from({ length: scenes.MOST_OBJECTS + 1 }, () => ({ base: mask }));
  expect(() => scenes.withObjects(scene, many)).toThrow('objects at most');
  const stroke = { erase: true, radius: 1, points: [[1, 1]] };
  expect(() => scenes.addStroke(emptyScene(), stroke)).toThrow('nothing to erase');
});
