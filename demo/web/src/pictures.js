// What the encoder's routing looks like: small PNGs, one pixel a token, as the demo's server makes them.

const HEAT = [ // from the least to the most important: violet to yellow
  [13, 8, 135], [75, 3, 161], [125, 3, 168], [168, 34, 150], [203, 70, 121],
  [229, 107, 93], [248, 148, 65], [253, 195, 40], [240, 249, 33],
];

/**
 * @typedef {{layers: number[], scores: Float32Array|null, selected: Float32Array}} Group
 *   one selection: the first and last layer that share it, each token's importance, and 1 for those that were big
 */

/**
 * @param {Group} group
 * @param {number} grid   tokens a side
 * @returns {Promise<import('../../../sam_bigltl/demo/page/types.js').Stage>}
 */
export async function stageOf({ layers: [first, last], scores, selected }, grid) {
  const share = selected.reduce((sum, value) => sum + value, 0) / selected.length;
  return {
    layers: last > first ? `layers ${first + 1} to ${last + 1}` : `layer ${first + 1}`,
    share: Math.round(share * 1e4) / 1e4,
    tokens: await png(grid, (token) => selected[token] ? [0, 0, 0, 0] : [255, 255, 255, 255]),
    heat: scores ? await png(grid, coloursOf(scores)) : null,
  };
}

/**
 * Colours by rank: a few tokens hold nearly all of the importance.
 *
 * @param {Float32Array} scores
 * @returns {(token: number) => number[]}
 */
export function coloursOf(scores) {
  const order = [...scores.keys()].sort((a, b) => scores[a] - scores[b] || a - b);
  const colours = new Array(scores.length);
  order.forEach((token, rank) => {
    const at = rank / Math.max(1, order.length - 1) * (HEAT.length - 1);
    const low = Math.min(Math.floor(at), HEAT.length - 2);
    colours[token] = [...HEAT[low].map((value, i) => Math.round(value + (HEAT[low + 1][i] - value) * (at - low))), 255];
  });
  return (token) => colours[token];
}

/**
 * @param {number} side
 * @param {(token: number) => number[]} colourOf
 */
async function png(side, colourOf) {
  const canvas = new OffscreenCanvas(side, side), context = canvas.getContext('2d');
  if (!context) return '';
  const image = context.createImageData(side, side);
  for (let token = 0; token < side * side; token++) image.data.set(colourOf(token), 4 * token);
  context.putImageData(image, 0, 0);
  const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
  return 'data:image/png;base64,' + btoa(String.fromCharCode(...bytes));
}
