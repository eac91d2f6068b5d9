// A mask at another size.
import { boundsOf, decode, encode, spansOf } from './rle.js';

/**
 * @typedef {import('../types.js').Rle} Rle
 * @typedef {import('./rle.js').Box} Box
 */

/**
 * A mask at another size, as RLE.
 *
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @returns {Rle}
 */
export function resized(rle, width, height) {
  if (rle.width === width && rle.height === height) return rle;
  const box = boxAt(rle, width, height);
  return encode(bitsIn(rle, width, height, box), width, height, box);
}

/**
 * A mask at any size, as a bitmap.
 *
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @returns {Uint8Array}
 */
export function bitsAt(rle, width, height) {
  if (rle.width === width && rle.height === height) return decode(rle);
  const bits = new Uint8Array(width * height), box = boxAt(rle, width, height), part = bitsIn(rle, width, height, box);
  const [left, top, columns, rows] = box;
  for (let y = 0; y < rows; y++) bits.set(part.subarray(y * columns, (y + 1) * columns), (top + y) * width + left);
  return bits;
}

/**
 * What surely holds the mask at the new size.
 *
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @returns {Box}
 */
function boxAt(rle, width, height) {
  const [x, y, columns, rows] = boundsOf(rle), sx = width / rle.width, sy = height / rle.height;
  const left = Math.max(0, Math.floor((x - 1) * sx)), top = Math.max(0, Math.floor((y - 1) * sy));
  const right = Math.min(width, Math.ceil((x + columns + 1) * sx));
  const bottom = Math.min(height, Math.ceil((y + rows + 1) * sy));
  return columns ? [left, top, right - left, bottom - top] : [0, 0, 0, 0];
}

/**
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @param {Box} box   the part of the new picture that is wanted
 */
function bitsIn(rle, width, height, box) {
  return width > rle.width && height > rle.height ? smooth(rle, width, height, box) : nearest(rle, width, height, box);
}

/**
 * The pixel under the middle of each new one, without a bitmap of the old size.
 *
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @param {Box} box
 */
function nearest(rle, width, height, [left, top, columns, rows]) {
  const bits = new Uint8Array(columns * rows), spans = spansOf(rle);
  const from = new Int32Array(rows);
  for (let y = 0; y < rows; y++) from[y] = Math.floor((top + y + 0.5) * rle.height / height);
  for (let x = 0, index = 0; x < columns; x++) {
    const base = Math.floor((left + x + 0.5) * rle.width / width) * rle.height;
    while (index && spans[index - 1] > base) index -= 2; // a column that is taken twice
    for (let y = 0; y < rows; y++) {
      const at = base + from[y];
      while (index < spans.length && spans[index + 1] <= at) index += 2;
      if (index < spans.length && spans[index] <= at) bits[y * columns + x] = 1;
    }
  }
  return bits;
}

/**
 * Larger: between the pixels linearly, so that edges have no steps of the old size.
 *
 * @param {Rle} rle
 * @param {number} width
 * @param {number} height
 * @param {Box} box
 */
function smooth(rle, width, height, [left, top, columns, rows]) {
  const old = decode(rle), bits = new Uint8Array(columns * rows), blended = new Float32Array(rle.width);
  const across = places(left, columns, rle.width, width), down = places(top, rows, rle.height, height);
  for (let y = 0, at = 0; y < rows; y++) {
    const above = down.low[y] * rle.width, below = down.high[y] * rle.width, share = down.share[y];
    for (let x = 0; x < rle.width; x++) blended[x] = old[above + x] + (old[below + x] - old[above + x]) * share;
    for (let x = 0; x < columns; x++, at++) {
      const value = blended[across.low[x]];
      if (value + (blended[across.high[x]] - value) * across.share[x] >= 0.5) bits[at] = 1;
    }
  }
  return bits;
}

/**
 * Between which two old pixels each new one lies, and how far on the way.
 *
 * @param {number} first
 * @param {number} count
 * @param {number} from   old size
 * @param {number} to   new size
 */
function places(first, count, from, to) {
  const low = new Int32Array(count), high = new Int32Array(count), share = new Float32Array(count);
  for (let index = 0; index < count; index++) {
    const at = Math.max(0, (first + index + 0.5) * from / to - 0.5);
    low[index] = Math.floor(at);
    high[index] = Math.min(from - 1, low[index] + 1);
    share[index] = at - low[index];
  }
  return { low, high, share };
}
