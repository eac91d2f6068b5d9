import { expect, test } from 'vitest';

import { areaOf, boxOf, inFrame, runsAbove } from '../src/enlarge.js';

/** OpenCV's bilinear resize of rows of numbers, written plainly. */
function enlarged(values, from, to) {
  const at = (place, length, size) => Math.min(Math.max((place + 0.5) * length / size - 0.5, 0), length - 1);
  const out = [];
  for (let y = 0; y < to.height; y++) {
    for (let x = 0; x < to.width; x++) {
      const fx = at(x, from.width, to.width), fy = at(y, from.height, to.height);
      const x0 = Math.floor(fx), y0 = Math.floor(fy), x1 = Math.min(x0 + 1, from.width - 1);
      const row = (line) => values[line * from.width + x0] * (1 - fx + x0) + values[line * from.width + x1] * (fx - x0);
      out.push(row(y0) * (1 - fy + y0) + row(Math.min(y0 + 1, from.height - 1)) * (fy - y0));
    }
  }
  return out;
}

function logitsOf(grid) {
  let state = 7;
  return Float32Array.from({ length: grid * grid }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 32 - 0.5;
  });
}

function bitmapOf(runs, { width, height }) {
  const bits = new Uint8Array(width * height);
  let at = 0;
  runs.forEach((length, i) => {
    for (const end = at + length; at < end; at++) bits[(at % height) * width + Math.floor(at / height)] = i % 2;
  });
  expect(at).toBe(width * height);
  return bits;
}

test.each([
  [{ width: 32, height: 20 }, { width: 75, height: 47 }], // larger than the model's frame
  [{ width: 32, height: 20 }, { width: 16, height: 10 }], // smaller
  [{ width: 1, height: 32 }, { width: 1, height: 90 }], // a line
])('masks are those of SAM\'s two resizes: %o to %o', (input, size) => {
  const grid = 8, side = 32, logits = logitsOf(grid), square = { width: side, height: side };
  const whole = enlarged(logits, { width: grid, height: grid }, square);
  const cut = whole.filter((_, i) => i % side < input.width && i < side * input.height);
  const expected = enlarged(cut, input, size).map((value) => Number(value > 0.05));
  const runs = runsAbove(inFrame(logits, grid, side, input), input, size, 0.05);
  const found = bitmapOf(runs, size);
  const wrong = expected.filter((value, i) => value !== found[i]).length;
  expect(wrong).toBeLessThanOrEqual(1); // where float32 rounds a logit to the other side
  expect(areaOf(runs)).toBe(found.reduce((sum, bit) => sum + bit, 0));
});

test('a mask of 60 megapixels takes no picture of its size', () => {
  const input = { width: 640, height: 474 }, size = { width: 9000, height: 6667 };
  const frame = inFrame(logitsOf(160), 160, 640, input), start = performance.now();
  const runs = runsAbove(frame, input, size, 0);
  expect(runs.reduce((sum, length) => sum + length, 0)).toBe(9000 * 6667);
  expect(performance.now() - start).toBeLessThan(20000); // seconds, not minutes, on a busy machine
});

test('boxes hold the first and last pixel of each side', () => {
  expect(boxOf([2 * 5 + 1, 2, 3, 1, 13], 5)).toEqual([2, 1, 3, 2]);
  expect(boxOf([3, 5, 12], 5)).toEqual([0, 0, 1, 4]); // a run over the end of a column
  expect(boxOf([20], 5)).toEqual([0, 0, 0, 0]);
});
