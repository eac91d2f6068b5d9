// What goes into the graphs, as arrays.

/** @typedef {{width: number, height: number}} Size */

/**
 * The encoder's input: normalised, a plane a colour, zeros at the right and at the bottom.
 *
 * @param {Uint8Array} rgb
 * @param {Size} size   of `rgb`
 * @param {number} side   of the input
 * @param {number[]} mean @param {number[]} std   of red, green and blue
 * @returns {Float32Array}   (1, 3, side, side)
 */
export function imageTensor(rgb, { width, height }, side, mean, std) {
  const out = new Float32Array(3 * side * side);
  for (let colour = 0; colour < 3; colour++) {
    const table = Float32Array.from({ length: 256 }, (_, value) => (value - mean[colour]) / std[colour]);
    for (let y = 0; y < height; y++) {
      let to = (colour * side + y) * side;
      for (let x = 0, from = y * width * 3 + colour; x < width; x++, from += 3) out[to++] = table[rgb[from]];
    }
  }
  return out;
}

const TOP_LEFT = 2, BOTTOM_RIGHT = 3, NOT_A_POINT = -1;

/**
 * A prompt as the decoder takes it. SAM ends points without a box with one that is none.
 *
 * @param {import('../../../sam_bigltl/demo/page/types.js').Prompt} prompt   in pixels of the photograph
 * @param {Size} photo
 * @param {Size} input   the photograph in the model's frame
 * @returns {{coords: Float32Array, labels: BigInt64Array}}   (n, 2) and (n,)
 */
export function promptTensors({ points, labels, box }, photo, input) {
  const all = [...points], kinds = [...labels, ...(box ? [TOP_LEFT, BOTTOM_RIGHT] : [NOT_A_POINT])];
  if (box) all.push([box[0], box[1]], [box[2], box[3]]);
  const coords = new Float32Array(2 * kinds.length); // of what is no point: zeros
  all.forEach(([x, y], i) => {
    coords[2 * i] = x * (input.width / photo.width);
    coords[2 * i + 1] = y * (input.height / photo.height);
  });
  return { coords, labels: BigInt64Array.from(kinds, BigInt) };
}
