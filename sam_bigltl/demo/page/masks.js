// Masks as bitmaps and outlines at the size at which they are shown.
import { maskOf } from './formats/masks.js';
import { isEmpty } from './scene.js';

/**
 * @typedef {import('./types.js').Item} Item
 * @typedef {import('./types.js').Rle} Rle
 * @typedef {{bits: Uint8Array, width: number, height: number}} Bitmap   row by row, 1 inside
 */

/** @type {WeakMap<Item, {decoded: Rle|null, bitmap: Bitmap}>} */
const bitmaps = new WeakMap();
/** @type {WeakMap<Bitmap, Path2D>} */
const outlines = new WeakMap();

/**
 * The size at which masks are computed for the eye: the photograph's, or smaller.
 *
 * @param {{width: number, height: number}} photo
 * @param {number} longest
 */
export function shownSize({ width, height }, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/**
 * The mask of an object, strokes included; the same one for the same object and answer.
 *
 * @param {Item} item
 * @param {Rle|null} decoded   of its prompt
 * @param {{width: number, height: number}} photo
 * @param {{width: number, height: number}} size
 * @returns {Bitmap|null}
 */
export function bitmapOf(item, decoded, photo, size) {
  if (isEmpty(item) || (!decoded && !item.base && !item.strokes.length)) return null;
  const kept = bitmaps.get(item);
  if (kept && kept.decoded === decoded && kept.bitmap.width === size.width) return kept.bitmap;
  const bits = maskOf(item, size.width, size.height, decoded, photo);
  const bitmap = { bits, width: size.width, height: size.height };
  bitmaps.set(item, { decoded, bitmap });
  return bitmap;
}

/**
 * The edges between the pixels of different values, as lines x0, y0, x1, y1 one after another.
 *
 * @param {ArrayLike<number>} values   row by row; what lies outside is 0
 * @param {number} width
 * @param {number} height
 * @returns {number[]}
 */
export function edges(values, width, height) {
  /** @type {number[]} */
  const found = [];
  for (let y = 0; y <= height; y++) {
    let start = -1;
    for (let x = 0, above = (y - 1) * width, below = y * width; x <= width; x++) {
      const differs = x < width && (y > 0 ? values[above + x] : 0) !== (y < height ? values[below + x] : 0);
      if (differs && start < 0) start = x;
      if (!differs && start >= 0) {
        found.push(start, y, x, y);
        start = -1;
      }
    }
  }
  const starts = new Int32Array(width + 1).fill(-1); // column by column would miss the cache at every step
  for (let y = 0; y <= height; y++) {
    for (let x = 0, row = y * width; x <= width; x++) {
      const differs = y < height && (x > 0 ? values[row + x - 1] : 0) !== (x < width ? values[row + x] : 0);
      if (differs && starts[x] < 0) starts[x] = y;
      if (!differs && starts[x] >= 0) {
        found.push(x, starts[x], x, y);
        starts[x] = -1;
      }
    }
  }
  return found;
}

/**
 * @param {ArrayLike<number>} values
 * @param {number} width
 * @param {number} height
 */
function pathOf(values, width, height) {
  const path = new Path2D(), lines = edges(values, width, height);
  for (let at = 0; at < lines.length; at += 4) {
    path.moveTo(lines[at], lines[at + 1]);
    path.lineTo(lines[at + 2], lines[at + 3]);
  }
  return path;
}

/**
 * The outline of a mask in its own pixels.
 *
 * @param {Bitmap} bitmap
 */
export function outlineOf(bitmap) {
  let path = outlines.get(bitmap);
  if (!path) outlines.set(bitmap, path = pathOf(bitmap.bits, bitmap.width, bitmap.height));
  return path;
}

/**
 * Masks as one picture, later ones above earlier ones.
 *
 * @param {{width: number, height: number}} size
 * @param {{bits: Uint8Array, colour: [number, number, number], alpha?: number}[]} layers   alpha: 0 to 255
 * @returns {ImageData}
 */
export function painted(size, layers) {
  const image = new ImageData(size.width, size.height), words = new Uint32Array(image.data.buffer);
  for (const { bits, colour: [red, green, blue], alpha = 255 } of layers) {
    const word = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0; // every machine that browsers run on
    for (let at = 0; at < bits.length; at++) if (bits[at]) words[at] = word;
  }
  return image;
}

/**
 * Which region lies where, the smallest above: index + 1, or 0. Their bitmaps are asked for one by one: all of them may
 * be large.
 *
 * @param {number[]} areas   of the regions
 * @param {(index: number) => Uint8Array} bitsOf
 * @param {{width: number, height: number}} size
 * @returns {Uint16Array}
 */
export function labelsOf(areas, bitsOf, size) {
  const labels = new Uint16Array(size.width * size.height);
  const order = areas.map((area, index) => ({ area, index })).sort((a, b) => b.area - a.area);
  for (const { index } of order) {
    const bits = bitsOf(index);
    for (let at = 0; at < bits.length; at++) if (bits[at]) labels[at] = index + 1;
  }
  return labels;
}

/**
 * @param {Uint16Array} labels
 * @param {{width: number, height: number}} size
 */
export const labelOutlines = (labels, { width, height }) => pathOf(labels, width, height);

/**
 * Shared pixels over all pixels of two masks of one size.
 *
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 */
export function iouOf(a, b) {
  let both = 0, either = 0;
  for (let at = 0; at < a.length; at++) {
    both += a[at] & b[at];
    either += a[at] | b[at];
  }
  return either ? both / either : 1;
}

/**
 * The rectangle in which a mask mostly lies, without specks far from the rest: x, y, width, height; null for an empty
 * mask.
 *
 * @param {Bitmap} bitmap
 * @param {number} [specks]   share of its pixels that may lie beyond each side
 * @returns {[number, number, number, number]|null}
 */
export function boundsOf({ bits, width, height }, specks = 0.03) {
  const columns = new Uint32Array(width), rows = new Uint32Array(height);
  let area = 0;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      columns[x] += bits[at];
      rows[y] += bits[at];
    }
    area += rows[y];
  }
  if (!area) return null;
  const [left, right] = middleOf(columns, area * specks), [top, bottom] = middleOf(rows, area * specks);
  return [left, top, right - left, bottom - top];
}

/**
 * From where to where `counts` are, without `least` at either end.
 *
 * @param {Uint32Array} counts
 * @param {number} least
 */
function middleOf(counts, least) {
  let start = 0, end = counts.length;
  for (let sum = counts[0]; sum <= least; sum += counts[start]) start++;
  for (let sum = counts[end - 1]; sum <= least; sum += counts[end - 1]) end--;
  return [start, end];
}
