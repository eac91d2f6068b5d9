// From the decoder's logits to masks of any size, as SAM does it: to the size of the model's input, cut to the
// photograph, to the size that is wanted. The mask is written as COCO's runs, column by column, and is never a picture
// in between: from one logit to the next it is linear, so where both are on one side, all pixels between them are.

/** @typedef {{width: number, height: number}} Size */
/** @typedef {{low: Int32Array, share: Float32Array}} Steps   of each output place the input place before it */

/**
 * Where OpenCV's bilinear resize reads.
 *
 * @param {number} from @param {number} to   lengths
 * @returns {Steps}
 */
export function stepsOf(from, to) {
  const low = new Int32Array(to), share = new Float32Array(to);
  for (let place = 0; place < to; place++) {
    const at = Math.min(Math.max((place + 0.5) * (from / to) - 0.5, 0), from - 1);
    low[place] = Math.floor(at);
    share[place] = at - low[place];
  }
  return { low, share };
}

/**
 * Logits of the photograph in the model's frame, column by column.
 *
 * @param {Float32Array} logits   (grid, grid), row by row
 * @param {number} grid
 * @param {number} side   of the model's input
 * @param {Size} input   the photograph's part of it
 * @returns {Float32Array}   (input.width, input.height)
 */
export function inFrame(logits, grid, side, { width, height }) {
  const { low, share } = stepsOf(grid, side), out = new Float32Array(width * height), column = new Float32Array(grid);
  for (let x = 0; x < width; x++) {
    const left = low[x], right = Math.min(left + 1, grid - 1), part = share[x];
    for (let y = 0; y < grid; y++) {
      column[y] = logits[y * grid + left] * (1 - part) + logits[y * grid + right] * part;
    }
    for (let y = 0; y < height; y++) {
      const above = column[low[y]], below = column[Math.min(low[y] + 1, grid - 1)];
      out[x * height + y] = above + (below - above) * share[y];
    }
  }
  return out;
}

/**
 * The lengths of a mask's runs, down the columns, the first one of background.
 *
 * @param {Float32Array} frame   of `inFrame`
 * @param {Size} input   its size
 * @param {Size} size   of the mask
 * @param {number} threshold
 * @returns {number[]}
 */
export function runsAbove(frame, input, size, threshold) {
  const across = stepsOf(input.width, size.width), down = stepsOf(input.height, size.height);
  const parts = partsOf(down.low), column = new Float32Array(input.height + 1), { height } = input;
  const runs = [];
  let inside = false, length = 0;
  for (let x = 0; x < size.width; x++) {
    const left = across.low[x] * height, right = Math.min(across.low[x] + 1, input.width - 1) * height;
    const share = across.share[x];
    for (let y = 0; y < height; y++) {
      column[y] = frame[left + y] + (frame[right + y] - frame[left + y]) * share - threshold;
    }
    column[height] = column[height - 1];
    for (let part = 0; part + 1 < parts.length; part++) {
      const start = parts[part], end = parts[part + 1];
      const above = column[down.low[start]], below = column[down.low[start] + 1];
      if (above > 0 === below > 0) {
        if (above > 0 !== inside) {
          runs.push(length);
          length = 0;
          inside = !inside;
        }
        length += end - start;
        continue;
      }
      for (let y = start; y < end; y++) {
        if (above + (below - above) * down.share[y] > 0 !== inside) {
          runs.push(length);
          length = 0;
          inside = !inside;
        }
        length++;
      }
    }
  }
  runs.push(length);
  return runs;
}

/**
 * Where the input place changes, with the end.
 *
 * @param {Int32Array} low
 */
function partsOf(low) {
  const parts = [0];
  for (let place = 1; place < low.length; place++) if (low[place] !== low[place - 1]) parts.push(place);
  parts.push(low.length);
  return parts;
}

/** @param {number[]} runs   pixels inside */
export function areaOf(runs) {
  let area = 0;
  for (let i = 1; i < runs.length; i += 2) area += runs[i];
  return area;
}

/**
 * The first and last column and row with a pixel inside: x0, y0, x1, y1; zeros where there is none.
 *
 * @param {number[]} runs
 * @param {number} height
 * @returns {[number, number, number, number]}
 */
export function boxOf(runs, height) {
  let x0 = Infinity, y0 = Infinity, x1 = -1, y1 = -1, at = 0;
  runs.forEach((length, i) => {
    if (i % 2 && length) {
      const last = at + length - 1, left = Math.floor(at / height), right = Math.floor(last / height);
      x0 = Math.min(x0, left);
      x1 = Math.max(x1, right);
      y0 = Math.min(y0, left < right ? 0 : at % height);
      y1 = Math.max(y1, left < right ? height - 1 : last % height);
    }
    at += length;
  });
  return x1 < 0 ? [0, 0, 0, 0] : [x0, y0, x1, y1];
}
