// Strokes of a round brush as pixels: a pixel is painted where its middle lies in the disc drawn along the stroke.

/** @typedef {import('../types.js').Stroke} Stroke */

const LEAST = Math.SQRT1_2; // a disc of this radius holds the middle of some pixel, wherever it lies

/**
 * Paint a stroke into a bitmap.
 *
 * @param {Uint8Array} bits   row by row
 * @param {number} width
 * @param {number} height
 * @param {Stroke} stroke
 * @param {number} [sx]   pixels of the bitmap per pixel of the stroke, across
 * @param {number} [sy]   and down
 */
export function paintStroke(bits, width, height, { erase, radius, points }, sx = 1, sy = 1) {
  const r = Math.max(LEAST, radius * Math.sqrt(sx * sy)), value = erase ? 0 : 1;
  for (let index = 0; index < points.length; index++) {
    const [ax, ay] = points[Math.max(0, index - 1)], [bx, by] = points[index];
    paintCapsule(bits, width, height, ax * sx, ay * sy, bx * sx, by * sy, r, value);
  }
}

/**
 * @param {Uint8Array} bits
 * @param {number} width
 * @param {number} height
 * @param {number} ax
 * @param {number} ay
 * @param {number} bx
 * @param {number} by
 * @param {number} r
 * @param {number} value
 */
function paintCapsule(bits, width, height, ax, ay, bx, by, r, value) {
  const dx = bx - ax, dy = by - ay, length = Math.hypot(dx, dy);
  const first = Math.max(0, Math.ceil(Math.min(ay, by) - r - 0.5));
  const last = Math.min(height - 1, Math.floor(Math.max(ay, by) + r - 0.5));
  for (let y = first; y <= last; y++) {
    // A capsule is convex: its part of a row is from the least to the greatest x of its two discs and of its band.
    const middle = y + 0.5;
    let left = Infinity, right = -Infinity;
    for (const [x, row] of [[ax, ay], [bx, by]]) {
      const half = r * r - (middle - row) ** 2;
      if (half < 0) continue;
      left = Math.min(left, x - Math.sqrt(half));
      right = Math.max(right, x + Math.sqrt(half));
    }
    if (length > 0) {
      const [low, high] = bandIn(middle, ax, ay, dx, dy, length, r);
      left = Math.min(left, low);
      right = Math.max(right, high);
    }
    const from = Math.max(0, Math.ceil(left - 0.5)), to = Math.min(width - 1, Math.floor(right - 0.5));
    if (from <= to) bits.fill(value, y * width + from, y * width + to + 1);
  }
}

/**
 * The x of the band around a segment in the row `y`: within r of its line, and between its ends.
 *
 * @param {number} y
 * @param {number} ax
 * @param {number} ay
 * @param {number} dx
 * @param {number} dy
 * @param {number} length
 * @param {number} r
 */
function bandIn(y, ax, ay, dx, dy, length, r) {
  let low = -Infinity, high = Infinity;
  const within = (/** @type {number} */ factor, /** @type {number} */ least, /** @type {number} */ most) => {
    // least <= factor * (x - ax) <= most
    if (factor === 0) {
      if (least > 0 || most < 0) low = Infinity;
      return;
    }
    const one = ax + least / factor, other = ax + most / factor;
    low = Math.max(low, Math.min(one, other));
    high = Math.min(high, Math.max(one, other));
  };
  const h = y - ay, side = dx * h, along = dy * h;
  within(-dy, -r * length - side, r * length - side);
  within(dx, -along, length * length - along);
  return low <= high ? [low, high] : [Infinity, -Infinity];
}
