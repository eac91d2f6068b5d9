import { expect, test } from 'vitest';
import { contoursOf } from '../../../sam_bigltl/demo/page/formats/contours.js';
import { fillRing } from '../../../sam_bigltl/demo/page/formats/fill.js';
import { polygonsOf, wholeRing } from '../../../sam_bigltl/demo/page/formats/polygons.js';
import { areaOf, encode } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { areaWithin } from '../../../sam_bigltl/demo/page/formats/simplify.js';
import { bitsOf, disc, drawn, iou, noise } from './formats_toy.js';

const filled = (polygons, width, height) => {
  const bits = new Uint8Array(width * height);
  if (polygons.length) fillRing(bits, width, height, wholeRing(polygons));
  return bits;
};

test('a rectangle has four corners at the edges of its pixels', () => {
  const { bits, width, height } = drawn('.....', '.###.', '.###.', '.....');
  const [{ outer, holes }, ...rest] = contoursOf(encode(bits, width, height));
  expect(rest).toEqual([]);
  expect(holes).toEqual([]);
  const corners = Array.from({ length: outer.length / 2 }, (_, at) => `${outer[2 * at]} ${outer[2 * at + 1]}`);
  expect(corners.sort()).toEqual(['1 1', '1 3', '4 1', '4 3']);
});

test('holes belong to the part around them, and a part may lie in a hole', () => {
  const { bits, width, height } = drawn(
    '#########', '#.......#', '#.####..#', '#.#..#..#', '#.####.##', '#......##', '#########');
  const parts = contoursOf(encode(bits, width, height));
  expect(parts.map(({ holes }) => holes.length)).toEqual([1, 1]);
  expect(parts.map(({ outer }) => Math.abs(areaWithin(outer)))).toEqual([63, 12]);
});

test('pixels that meet at a corner are two parts; a hole may go on across a corner', () => {
  const { bits, width, height } = drawn('#.', '.#');
  expect(contoursOf(encode(bits, width, height))).toHaveLength(2);
  const around = drawn('####', '#.##', '##.#', '####');
  expect(contoursOf(encode(around.bits, 4, 4)).map(({ holes }) => holes.length)).toEqual([1]);
});

test('outlines along the pixels give the same pixels again', () => {
  for (let seed = 1; seed < 200; seed++) {
    const width = 1 + seed % 19, height = 1 + seed % 11, bits = noise(width, height, (seed % 10) / 9, seed);
    const rle = encode(bits, width, height), parts = contoursOf(rle);
    const area = (ring) => Math.abs(areaWithin(ring));
    const holes = parts.flatMap((part) => part.holes);
    const sum = (rings) => rings.reduce((total, ring) => total + area(ring), 0);
    expect(sum(parts.map(({ outer }) => outer)) - sum(holes)).toBe(areaOf(rle));
    for (const { outer, holes: inner } of parts) {
      expect(inner.every((hole) => Math.sign(areaWithin(hole)) === -Math.sign(areaWithin(outer)))).toBe(true);
    }
    expect(filled(polygonsOf(rle, 0), width, height)).toEqual(bits);
  }
});

test.each([5, 10, 20, 50, 100, 300])('a disc of radius %i keeps its pixels at a tolerance of 1', (radius) => {
  const side = 2 * radius + 9, bits = disc(side, side, side / 2, side / 2 + 0.3, radius);
  const rle = encode(bits, side, side), exact = polygonsOf(rle, 0), fewer = polygonsOf(rle, 1);
  expect(iou(filled(fewer, side, side), bits)).toBeGreaterThanOrEqual(0.98);
  expect(Math.abs(areaWithin(fewer[0].outer)) / areaOf(rle)).toBeCloseTo(1, 1.7);
  if (radius >= 20) expect(fewer[0].outer.length).toBeLessThan(exact[0].outer.length / 3);
});

test('a rectangle that is turned loses its steps and keeps its corners', () => {
  const along = (x, y) => Math.abs((x - 100) * 0.8 + (y - 100) * 0.6);
  const bits = bitsOf(200, 200, (x, y) => along(x, y) < 60 && along(y, 200 - x) < 40);
  const [{ outer }] = polygonsOf(encode(bits, 200, 200), 1.5);
  expect(outer.length / 2).toBeLessThanOrEqual(8);
  expect(iou(filled([{ outer, holes: [] }], 200, 200), bits)).toBeGreaterThan(0.98);
});

test('thin lines and single pixels stay at any tolerance', () => {
  const bits = bitsOf(60, 60, (x, y) => y === 10 || (x === 30 && y === 40));
  expect(filled(polygonsOf(encode(bits, 60, 60), 10), 60, 60)).toEqual(bits);
});

test('a polygon that would take all memory is refused', () => {
  const ring = Float64Array.from({ length: 200000 }, (_, at) => (at % 4 < 2 ? -1e300 : 1e300));
  expect(() => fillRing(new Uint8Array(1000), 1, 1000, ring)).toThrow('too intricate');
});

test('thousands of parts and holes are one line, too', () => {
  const bits = noise(160, 150, 0.45, 3), parts = polygonsOf(encode(bits, 160, 150), 0);
  expect(parts.length).toBeGreaterThan(2000);
  expect(filled(parts, 160, 150)).toEqual(bits);
});
