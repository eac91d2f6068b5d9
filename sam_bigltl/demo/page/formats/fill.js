// Polygons as pixels: a pixel is inside where its middle is.
import { InputError } from '../types.js';

const MOST_CROSSINGS = 2 ** 24; // of sides and rows; an outline along the pixels has fewer

/**
 * Fill a closed line, by the rule of even and odd, and add it to a bitmap.
 *
 * @param {Uint8Array} bits   row by row
 * @param {number} width
 * @param {number} height
 * @param {ArrayLike<number>} ring   x0, y0, x1, y1, and so on; anything finite
 */
export function fillRing(bits, width, height, ring) {
  // The rows where each side crosses the middle of pixels, counted and then listed row by row.
  const count = new Int32Array(height + 1);
  let total = 0;
  const rowsOf = (/** @type {number} */ a, /** @type {number} */ b) => {
    const low = Math.min(ring[a + 1], ring[b + 1]), high = Math.max(ring[a + 1], ring[b + 1]);
    return [Math.max(0, Math.ceil(low - 0.5)), Math.min(height, Math.ceil(high - 0.5))];
  };
  for (let b = 0, a = ring.length - 2; b < ring.length; a = b, b += 2) {
    const [from, to] = rowsOf(a, b);
    total += Math.max(0, to - from);
    if (total > MOST_CROSSINGS) throw new InputError('A polygon is too intricate.');
    for (let y = from; y < to; y++) count[y + 1]++;
  }
  for (let y = 0; y < height; y++) count[y + 1] += count[y];
  const crossings = new Float64Array(count[height]), places = count.slice();
  for (let b = 0, a = ring.length - 2; b < ring.length; a = b, b += 2) {
    // From its upper end, so that a line there and the same line back cross a row at the same place exactly.
    const [from, to] = rowsOf(a, b), [upper, lower] = ring[a + 1] < ring[b + 1] ? [a, b] : [b, a];
    const slope = (ring[lower] - ring[upper]) / (ring[lower + 1] - ring[upper + 1]);
    for (let y = from; y < to; y++) crossings[places[y]++] = ring[upper] + (y + 0.5 - ring[upper + 1]) * slope;
  }
  for (let y = 0; y < height; y++) {
    const row = crossings.subarray(count[y], count[y + 1]).sort();
    for (let index = 0; index + 1 < row.length; index += 2) {
      const from = Math.max(0, Math.ceil(row[index] - 0.5)), to = Math.min(width, Math.ceil(row[index + 1] - 0.5));
      if (from < to) bits.fill(1, y * width + from, y * width + to);
    }
  }
}
