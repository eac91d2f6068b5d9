// Pillow's bilinear resize of 8-bit pictures, which filters where it makes smaller: the model's input is then the same
// here as in Python. Rows may come in parts, so that a large photograph is never held as pixels.

const BITS = 22; // of the weights' fractions, as in Pillow
const HALF = 1 << (BITS - 1);

/**
 * For every output place the first input place and the weights from there on.
 *
 * @param {number} from   input length
 * @param {number} to   output length
 * @returns {{first: Int32Array, count: Int32Array, weights: Int32Array, step: number}}
 */
export function weightsOf(from, to) {
  const scale = from / to, stretch = Math.max(scale, 1);
  const step = Math.ceil(stretch) * 2 + 1;
  const first = new Int32Array(to), count = new Int32Array(to), weights = new Int32Array(to * step);
  const found = new Float64Array(step);
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - stretch + 0.5));
    const length = Math.min(from, Math.trunc(centre + stretch + 0.5)) - start;
    let sum = 0;
    for (let i = 0; i < length; i++) {
      found[i] = Math.max(0, 1 - Math.abs((i + start - centre + 0.5) / stretch));
      sum += found[i];
    }
    first[place] = start;
    count[place] = length;
    for (let i = 0; i < length; i++) weights[place * step + i] = Math.trunc(0.5 + (found[i] / sum) * (1 << BITS));
  }
  return { first, count, weights, step };
}

export class Resampler {
  /**
   * @param {number} width @param {number} height   of the photograph
   * @param {number} toWidth @param {number} toHeight
   */
  constructor(width, height, toWidth, toHeight) {
    this.width = width;
    this.height = height;
    this.toWidth = toWidth;
    this.toHeight = toHeight;
    this.across = weightsOf(width, toWidth);
    this.narrow = new Uint8Array(height * toWidth * 3); // all rows at their new width
  }

  /**
   * @param {Uint8ClampedArray|Uint8Array} rgba   whole rows, four bytes a pixel
   * @param {number} row   the first of them
   */
  add(rgba, row) {
    const { first, count, weights, step } = this.across, { width, toWidth, narrow } = this;
    const rows = rgba.length / (4 * width);
    for (let y = 0; y < rows; y++) {
      let to = (row + y) * toWidth * 3;
      for (let x = 0; x < toWidth; x++) {
        let red = HALF, green = HALF, blue = HALF, from = (y * width + first[x]) * 4;
        for (let i = x * step, end = i + count[x]; i < end; i++, from += 4) {
          const weight = weights[i];
          red += rgba[from] * weight;
          green += rgba[from + 1] * weight;
          blue += rgba[from + 2] * weight;
        }
        narrow[to++] = red >> BITS;
        narrow[to++] = green >> BITS;
        narrow[to++] = blue >> BITS;
      }
    }
  }

  /** @returns {Uint8Array}   RGB, three bytes a pixel, toHeight rows */
  finish() {
    const { first, count, weights, step } = weightsOf(this.height, this.toHeight);
    const { toHeight, narrow } = this, length = this.toWidth * 3;
    const out = new Uint8Array(toHeight * length), sums = new Int32Array(length);
    for (let y = 0; y < toHeight; y++) {
      sums.fill(HALF);
      for (let i = 0; i < count[y]; i++) {
        const weight = weights[y * step + i], from = (first[y] + i) * length;
        for (let x = 0; x < length; x++) sums[x] += narrow[from + x] * weight;
      }
      for (let x = 0; x < length; x++) out[y * length + x] = sums[x] >> BITS;
    }
    return out;
  }
}

/**
 * The size of a photograph whose long side is `side`, at least one pixel each way.
 *
 * @param {{width: number, height: number}} size
 * @param {number} side
 * @returns {{width: number, height: number}}
 */
export function longestSide({ width, height }, side) {
  const scale = side / Math.max(width, height);
  const length = (/** @type {number} */ of) => Math.max(1, Math.trunc(of * scale + 0.5));
  return { width: length(width), height: length(height) };
}
