import { expect, test } from 'vitest';

import { gridOf, keptBoxes } from '../src/everything.js';
import { coloursOf } from '../src/pictures.js';
import { imageTensor, promptTensors } from '../src/tensors.js';

test('a photograph fills the top left of the input, a plane a colour', () => {
  const rgb = Uint8Array.of(10, 20, 30, 40, 50, 60);
  const tensor = imageTensor(rgb, { width: 2, height: 1 }, 2, [10, 0, 0], [2, 1, 10]);
  expect([...tensor]).toEqual([0, 15, 0, 0, 20, 50, 0, 0, 3, 6, 0, 0]);
});

test('prompts are scaled; points without a box end with one that is none', () => {
  const photo = { width: 1000, height: 500 }, input = { width: 640, height: 320 };
  const points = promptTensors({ points: [[500, 250], [0, 100]], labels: [1, 0], box: null }, photo, input);
  expect([...points.coords]).toEqual([320, 160, 0, 64, 0, 0]);
  expect([...points.labels]).toEqual([1n, 0n, -1n]);
  const both = promptTensors({ points: [[500, 250]], labels: [1], box: [100, 50, 900, 450] }, photo, input);
  expect([...both.coords]).toEqual([320, 160, 64, 32, 576, 288]);
  expect([...both.labels]).toEqual([1n, 2n, 3n]);
});

test('the grid has its points in the middle of its cells, row by row', () => {
  expect(gridOf(2, { width: 100, height: 40 })).toEqual([[25, 10], [75, 10], [25, 30], [75, 30]]);
});

test('of boxes that overlap the best stays, of equal ones the first', () => {
  const boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [20, 0, 30, 10], [5, 5, 5, 5]];
  expect(keptBoxes(boxes, [0.8, 0.9, 0.5, 0.5, 0.1], 0.7)).toEqual([1, 2, 4]);
  expect(keptBoxes(boxes, [0.8, 0.9, 0.5, 0.5, 0.1], 0.95)).toEqual([1, 0, 2, 4]);
  expect(keptBoxes([], [], 0.7)).toEqual([]);
});

test('importance is drawn by rank', () => {
  const colourOf = coloursOf(Float32Array.of(0.9, 1e-6, 0.05));
  expect(colourOf(1)).toEqual([13, 8, 135, 255]);
  expect(colourOf(0)).toEqual([240, 249, 33, 255]);
  expect(colourOf(2)).toEqual([203, 70, 121, 255]);
});
