// Objects alone, the rest transparent, cut to their bounds.
import { InputError } from '../types.js';
import { breathe, withMask } from './exported.js';
import { safeName, stemOf } from './names.js';
import { rgbaPng } from './png.js';
import { boundsOf, columnEdges } from './rle.js';
import { makeZip } from './zip.js';

/**
 * @typedef {(x: number, y: number, width: number, height: number) => Uint8ClampedArray} Reader   RGBA of a part of
 *   the photograph
 */

/**
 * @param {import('../types.js').Rle} mask   an empty one gives a single transparent pixel
 * @param {Reader} read
 */
export function cutoutPng(mask, read) {
  const [left, top, columns, rows] = boundsOf(mask), bits = croppedBits(mask, left, top, columns, rows);
  if (!columns) return rgbaPng({ width: 1, height: 1 }, () => new Uint8Array(4));
  return rgbaPng({ width: columns, height: rows }, (y, count) => {
    const pixels = read(left, top + y, columns, count);
    const words = new Uint32Array(pixels.buffer, pixels.byteOffset, columns * count);
    for (let at = 0; at < words.length; at++) if (!bits[y * columns + at]) words[at] = 0;
    return pixels;
  });
}

/**
 * The mask in its bounds, without a bitmap of the whole.
 *
 * @param {import('../types.js').Rle} mask
 * @param {number} left
 * @param {number} top
 * @param {number} columns
 * @param {number} rows
 */
function croppedBits(mask, left, top, columns, rows) {
  const { starts, edges } = columnEdges(mask), bits = new Uint8Array(columns * rows);
  for (let x = 0; x < columns; x++) {
    for (let index = starts[left + x]; index < starts[left + x + 1]; index += 2) {
      for (let y = edges[index] - top; y < edges[index + 1] - top; y++) bits[y * columns + x] = 1;
    }
  }
  return bits;
}

/**
 * All cut-outs in one ZIP.
 *
 * @param {import('./exported.js').Scenery} scenery
 * @param {Reader} read
 */
export async function cutoutsZip({ photo, objects }, read) {
  const items = withMask(objects), entries = [];
  if (!items.length) throw new InputError('Every mask is empty: there is nothing to cut out.');
  for (const { name, mask } of items) {
    const file = `${stemOf(photo.name)}_${safeName(name, 'object')}.png`;
    entries.push({ name: file, content: await cutoutPng(mask, read), stored: true });
    await breathe();
  }
  return makeZip(entries);
}

/**
 * @param {ImageBitmap|HTMLCanvasElement} picture   the whole photograph
 * @returns {Reader}
 */
export function readerOf(picture) {
  return (x, y, width, height) => {
    const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    if (!context) throw new InputError('This browser gives no memory for the photograph: close other pages.');
    context.fillStyle = 'white'; // under photographs that are transparent themselves, as the model sees them
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, x, y, width, height, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
}
