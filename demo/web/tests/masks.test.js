import { expect, test } from 'vitest';
import { boundsOf, edges, iouOf, labelsOf, shownSize } from '../../../sam_bigltl/demo/page/masks.js';

test('edges are around pixels, in as few lines as there are', () => {
  const square = [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0];
  const lines = (values, width, height) => {
    const found = edges(values, width, height);
    return Array.from({ length: found.length / 4 }, (_, at) => found.slice(4 * at, 4 * at + 4)).sort();
  };
  expect(lines(square, 4, 4)).toEqual([[1, 1, 1, 3], [1, 1, 3, 1], [1, 3, 3, 3], [3, 1, 3, 3]]);
  expect(lines([1], 1, 1)).toEqual([[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]);
  expect(lines([0, 0], 2, 1)).toEqual([]);
  expect(lines([1, 2], 2, 1)).toContainEqual([1, 0, 1, 1]); // between two regions
});

test('the size of a mask on the page', () => {
  expect(shownSize({ width: 9000, height: 6667 }, 1280)).toEqual({ width: 1280, height: 948 });
  expect(shownSize({ width: 300, height: 200 }, 1280)).toEqual({ width: 300, height: 200 });
  expect(shownSize({ width: 30000, height: 5 }, 1280)).toEqual({ width: 1280, height: 1 });
});

test('small regions lie above large ones', () => {
  const bits = [Uint8Array.of(0, 1, 0), Uint8Array.of(1, 1, 1)];
  expect([...labelsOf([1, 3], (index) => bits[index], { width: 3, height: 1 })]).toEqual([2, 1, 2]);
});

test('bounds and overlap', () => {
  expect(boundsOf({ bits: Uint8Array.of(0, 0, 0, 0, 1, 1), width: 3, height: 2 })).toEqual([1, 1, 2, 1]);
  const specks = new Uint8Array(100).fill(1, 40, 60);
  expect(boundsOf({ bits: specks.with(3, 1), width: 10, height: 10 }, 0.05)).toEqual([0, 4, 10, 2]);
  expect(boundsOf({ bits: specks.with(3, 1), width: 10, height: 10 }, 0)).toEqual([0, 0, 10, 6]);
  expect(boundsOf({ bits: new Uint8Array(6), width: 3, height: 2 })).toBe(null);
  expect(iouOf(Uint8Array.of(1, 1, 0), Uint8Array.of(0, 1, 1))).toBeCloseTo(1 / 3);
  expect(iouOf(new Uint8Array(3), new Uint8Array(3))).toBe(1);
});
