// COCO's compressed RLE, as pycocotools reads and writes it: the lengths of runs down the columns, background first.
// Bitmaps are row by row, 1 inside and 0 outside. Work grows with the runs wherever that is possible: 60 megapixels are
// usual.
import { InputError } from '../types.js';

/**
 * @typedef {import('../types.js').Rle} Rle
 * @typedef {[number, number, number, number]} Box   x, y, width, height
 */

const BROKEN = 'The RLE is broken: its counts do not fill its size.';

/** A list of integers that grows. */
export class Integers {
  /** @param {number} [room] */
  constructor(room = 1024) {
    this.values = new Int32Array(room);
    this.length = 0;
  }

  /** @param {number} value */
  push(value) {
    if (this.length === this.values.length) {
      const larger = new Int32Array(2 * this.length);
      larger.set(this.values);
      this.values = larger;
    }
    this.values[this.length++] = value;
  }

  take() {
    return this.values.subarray(0, this.length);
  }
}

/**
 * Run lengths as COCO's string: each, from the fourth on as its difference from the one two before, in characters of
 * five bits and one that says that more follow.
 *
 * @param {ArrayLike<number>} runs
 */
export function countsOf(runs) {
  const characters = new Uint8Array(8192);
  let text = '', used = 0;
  for (let index = 0; index < runs.length; index++) {
    let rest = index > 2 ? runs[index] - runs[index - 2] : runs[index], more = true;
    if (used > characters.length - 8) {
      text += String.fromCharCode(...characters.subarray(0, used));
      used = 0;
    }
    while (more) {
      const bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      characters[used++] = 48 + bits + (more ? 32 : 0);
    }
  }
  return text + String.fromCharCode(...characters.subarray(0, used));
}

/**
 * The run lengths of COCO's string. Throws InputError where it is none.
 *
 * @param {string} counts
 */
export function runsOf(counts) {
  const runs = new Integers();
  let value = 0, shift = 0;
  for (let at = 0; at < counts.length; at++) {
    const code = counts.charCodeAt(at) - 48;
    if (code < 0 || code > 63 || shift > 30) throw new InputError(BROKEN);
    value |= (code & 31) << shift;
    shift += 5;
    if (code & 32) continue;
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs.values[runs.length - 2];
    if (value < 0 || value > 0x7fffffff) throw new InputError(BROKEN);
    runs.push(value);
    value = shift = 0;
  }
  if (shift) throw new InputError(BROKEN);
  return runs.take();
}

/**
 * Where a mask is inside: start and end of each run, as positions down the columns. Runs of no length, which others
 * write, are gone. Throws InputError where the runs do not fill the size.
 *
 * @param {Rle} rle
 */
export const spansOf = ({ width, height, counts }) => spansOfRuns(runsOf(counts), width * height);

/**
 * @param {ArrayLike<number>} runs
 * @param {number} size   pixels that they must fill
 */
export function spansOfRuns(runs, size) {
  const spans = new Integers(runs.length + 2);
  let at = 0;
  for (let index = 0; index < runs.length; index++) {
    const end = at + runs[index];
    if (!(end <= size)) throw new InputError(BROKEN);
    if (index % 2 && end > at) {
      if (spans.length && spans.values[spans.length - 1] === at) spans.values[spans.length - 1] = end;
      else {
        spans.push(at);
        spans.push(end);
      }
    }
    at = end;
  }
  if (at !== size) throw new InputError(BROKEN);
  return spans.take();
}

/**
 * @param {ArrayLike<number>} spans   see `spansOf`
 * @param {number} width
 * @param {number} height
 * @returns {Rle}
 */
export function rleOfSpans(spans, width, height) {
  const size = width * height, runs = new Int32Array(spans.length + 1);
  let last = 0, length = 0;
  for (let index = 0; index < spans.length; index++) {
    runs[length++] = spans[index] - last;
    last = spans[index];
  }
  if (last < size || !length) runs[length++] = size - last;
  return { width, height, counts: countsOf(runs.subarray(0, length)) };
}

/**
 * A bitmap as RLE.
 *
 * @param {Uint8Array} bits   of the whole picture, or of `box`, outside of which there is nothing
 * @param {number} width   of the picture
 * @param {number} height
 * @param {Box} [box]
 * @returns {Rle}
 */
export function encode(bits, width, height, [left, top, columns, rows] = [0, 0, width, height]) {
  // Where a pixel differs from the one above it, counted and then listed column by column: two passes along the rows,
  // since one down the columns would miss the cache at every pixel.
  const starts = new Int32Array(columns + 1), busy = new Uint8Array(rows);
  const none = new Uint8Array(columns);
  const rowOf = (/** @type {number} */ y) => (y < 0 ? none : bits.subarray(y * columns, (y + 1) * columns));
  for (let y = 0; y < rows; y++) {
    const now = rowOf(y), before = rowOf(y - 1);
    for (let x = 0; x < columns; x++) {
      if (now[x] === before[x]) continue;
      starts[x + 1]++;
      busy[y] = 1;
    }
  }
  for (let x = 0; x < columns; x++) starts[x + 1] += starts[x];
  const places = starts.slice(), changes = new Int32Array(starts[columns]);
  for (let y = 0; y < rows; y++) {
    if (!busy[y]) continue;
    const now = rowOf(y), before = rowOf(y - 1);
    for (let x = 0; x < columns; x++) if (now[x] !== before[x]) changes[places[x]++] = y;
  }
  const spans = new Integers(2 * changes.length + 2);
  for (let x = 0; x < columns; x++) {
    const base = (left + x) * height + top;
    for (let index = starts[x]; index < starts[x + 1]; index += 2) {
      const start = base + changes[index], end = base + (index + 1 < starts[x + 1] ? changes[index + 1] : rows);
      if (spans.length && spans.values[spans.length - 1] === start) spans.values[spans.length - 1] = end;
      else {
        spans.push(start);
        spans.push(end);
      }
    }
  }
  return rleOfSpans(spans.take(), width, height);
}

/**
 * RLE as a bitmap, row by row.
 *
 * @param {Rle} rle
 * @returns {Uint8Array}
 */
export function decode(rle) {
  const { width, height } = rle, { starts, edges } = columnEdges(rle);
  // The changes down the columns, listed row by row; each row is then the one above with its changes.
  const ends = new Int32Array(height + 2);
  for (let index = 0; index < edges.length; index++) ends[edges[index] + 1]++;
  for (let y = 0; y <= height; y++) ends[y + 1] += ends[y];
  const places = ends.slice(), changed = new Int32Array(edges.length);
  for (let x = 0; x < width; x++) {
    for (let index = starts[x]; index < starts[x + 1]; index++) changed[places[edges[index]]++] = x;
  }
  const bits = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = y * width;
    if (y) bits.copyWithin(row, row - width, row);
    for (let index = ends[y]; index < ends[y + 1]; index++) bits[row + changed[index]] ^= 1;
  }
  return bits;
}

/**
 * Where each column enters and leaves the mask, in turn: rows, `edges[starts[x]]` to `edges[starts[x + 1]]` of column
 * x.
 *
 * @param {Rle} rle
 */
export function columnEdges(rle) {
  const { width, height } = rle, spans = spansOf(rle), edges = new Integers(2 * spans.length + 2);
  const starts = new Int32Array(width + 1);
  let column = 0;
  for (let index = 0; index < spans.length; index += 2) {
    for (let at = spans[index]; at < spans[index + 1];) {
      const x = Math.floor(at / height), end = Math.min(spans[index + 1], (x + 1) * height);
      while (column < x) starts[++column] = edges.length;
      edges.push(at - x * height);
      edges.push(end - x * height);
      at = end;
    }
  }
  while (column < width) starts[++column] = edges.length;
  return { starts, edges: edges.take() };
}

/**
 * Pixels inside.
 *
 * @param {Rle} rle
 */
export function areaOf(rle) {
  const runs = runsOf(rle.counts);
  let area = 0;
  for (let index = 1; index < runs.length; index += 2) area += runs[index];
  return area;
}

/**
 * The least rectangle that holds the mask; all zero where it is empty, as of pycocotools.
 *
 * @param {Rle} rle
 * @returns {Box}
 */
export function boundsOf(rle) {
  const { height } = rle, spans = spansOf(rle);
  if (!spans.length) return [0, 0, 0, 0];
  const left = Math.floor(spans[0] / height), right = Math.floor((spans[spans.length - 1] - 1) / height);
  let top = height, bottom = 0;
  for (let index = 0; index < spans.length; index += 2) {
    const start = spans[index], last = spans[index + 1] - 1;
    const one = Math.floor(start / height) === Math.floor(last / height); // column
    top = Math.min(top, one ? start % height : 0);
    bottom = Math.max(bottom, one ? last % height : height - 1);
  }
  return [left, top, right - left + 1, bottom - top + 1];
}
