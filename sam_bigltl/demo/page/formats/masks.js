// The mask of an object at any size: what it starts from, and then the strokes of the brush.
import { bitsAt } from './scale.js';
import { paintStroke } from './strokes.js';

/**
 * @typedef {import('../types.js').Rle} Rle
 * @typedef {import('../types.js').Stroke} Stroke
 */

/**
 * @param {{strokes: Stroke[], base: Rle|null}} object
 * @param {number} width   of the bitmap wanted
 * @param {number} height
 * @param {Rle|null} decoded   what the decoder answered to its prompt, of any size; null: the object's base counts
 * @param {{width: number, height: number}} [photo]   the size that strokes refer to
 * @returns {Uint8Array}   row by row, 1 inside
 */
export function maskOf(object, width, height, decoded, photo = { width, height }) {
  const start = decoded ?? object.base, bits = start ? bitsAt(start, width, height) : new Uint8Array(width * height);
  for (const stroke of object.strokes) {
    paintStroke(bits, width, height, stroke, width / photo.width, height / photo.height);
  }
  return bits;
}
