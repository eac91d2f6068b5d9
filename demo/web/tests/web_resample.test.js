import { expect, test } from 'vitest';

import { longestSide, Resampler } from '../src/resample.js';

/** A picture without pattern, as in the Python that made the sums below. */
function noise(width, height) {
  const rgba = new Uint8Array(width * height * 4);
  let state = 1;
  for (let i = 0; i < rgba.length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    rgba[i] = i % 4 === 3 ? 255 : state >>> 24;
  }
  return rgba;
}

function resized(width, height, toWidth, toHeight, rows) {
  const resampler = new Resampler(width, height, toWidth, toHeight), rgba = noise(width, height);
  for (let row = 0; row < height; row += rows) {
    resampler.add(rgba.subarray(row * width * 4, Math.min(row + rows, height) * width * 4), row);
  }
  return resampler.finish();
}

/** Sum, and sum of value times place, of a picture: what Pillow's `resize(..., BILINEAR)` gives. */
function sums(pixels) {
  const placed = pixels.reduce((sum, value, i) => (sum + value * (i % 1009)) % 1e9, 0);
  return [pixels.reduce((sum, value) => sum + value, 0), placed];
}

test.each([
  [37, 23, 11, 7, [29938, 3461682]],
  [9, 13, 20, 29, [216954, 95600099]],
  [16, 16, 16, 16, [98758, 37807272]],
])('%i x %i to %i x %i is Pillow\'s, pixel by pixel', (width, height, toWidth, toHeight, expected) => {
  expect(sums(resized(width, height, toWidth, toHeight, height))).toEqual(expected);
});

test('rows may come in parts', () => {
  expect(resized(37, 23, 11, 7, 4)).toEqual(resized(37, 23, 11, 7, 23));
});

test('the long side becomes the model\'s, and no side is lost', () => {
  expect(longestSide({ width: 600, height: 400 }, 640)).toEqual({ width: 640, height: 427 });
  expect(longestSide({ width: 9000, height: 4 }, 640)).toEqual({ width: 640, height: 1 });
});
