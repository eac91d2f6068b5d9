import { expect, test } from 'vitest';
import { maskOf } from '../../../sam_bigltl/demo/page/formats/masks.js';
import { encode } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { paintStroke } from '../../../sam_bigltl/demo/page/formats/strokes.js';
import { bitsOf, disc, iou } from './formats_toy.js';

/** The distance of a point from a segment. */
function distance(px, py, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, long = dx * dx + dy * dy;
  const t = long ? Math.min(1, Math.max(0, ((px - ax) * dx + (py - ay) * dy) / long)) : 0;
  return Math.hypot(px - ax - t * dx, py - ay - t * dy);
}

test('a stroke covers the pixels whose middle is within its radius', () => {
  const lines = [
    [[10.2, 12.7], [50.1, 30.4]], [[50, 10], [8, 44]], [[30, 5], [30, 50]], [[5, 30], [70, 30]], [[20, 20], [20, 20]],
    [[-20, -10], [90, 70]], [[200, 200], [300, 300]], [[10, 10], [10.3, 40], [60, 41]],
  ];
  for (const points of lines) {
    for (const radius of [0.9, 4, 11.5]) {
      const bits = new Uint8Array(64 * 56);
      paintStroke(bits, 64, 56, { erase: false, radius, points });
      expect(bits).toEqual(bitsOf(64, 56, (x, y) => points.some((point, at) =>
        distance(x + 0.5, y + 0.5, points[Math.max(0, at - 1)], point) <= radius + 1e-9)));
    }
  }
});

test('the thinnest brush leaves a mark wherever it is', () => {
  for (const at of [3, 3.25, 3.5, 3.75]) {
    const bits = new Uint8Array(64);
    paintStroke(bits, 8, 8, { erase: false, radius: 0.01, points: [[at, at]] });
    expect(bits.includes(1)).toBe(true);
  }
});

const strokes = [
  { erase: false, radius: 20, points: [[100, 100], [150, 100]] }, { erase: true, radius: 12, points: [[100, 100]] },
];

test('strokes follow one another, at any size of the bitmap', () => {
  const photo = { width: 400, height: 300 }, item = { strokes, base: null };
  const full = maskOf(item, 400, 300, null, photo), half = maskOf(item, 200, 150, null, photo);
  expect(full[100 * 400 + 100]).toBe(0); // erased
  expect(full[100 * 400 + 130]).toBe(1);
  expect(maskOf({ strokes: strokes.toReversed(), base: null }, 400, 300, null, photo)[100 * 400 + 100]).toBe(1);
  expect(iou(half, bitsOf(200, 150, (x, y) => full[2 * y * 400 + 2 * x]))).toBeGreaterThan(0.93);
});

test('what the decoder answers counts before the base, and both come at the size wanted', () => {
  const base = encode(disc(80, 60, 20, 30, 10), 80, 60), decoded = encode(disc(40, 30, 30, 15, 5), 40, 30);
  const item = { strokes: [], base };
  expect(iou(maskOf(item, 80, 60, null), disc(80, 60, 20, 30, 10))).toBe(1);
  expect(iou(maskOf(item, 80, 60, decoded), disc(80, 60, 60, 30, 10))).toBeGreaterThan(0.93);
  expect(maskOf({ strokes: [], base: null }, 8, 6, null)).toEqual(new Uint8Array(48));
});
