// The parts of everything mode that need no model: the points to ask, and which of the masks to keep.

/**
 * Points on a regular grid.
 *
 * @param {number} perSide
 * @param {{width: number, height: number}} photo
 * @returns {[number, number][]}
 */
export function gridOf(perSide, { width, height }) {
  /** @type {[number, number][]} */
  const points = [];
  for (let row = 0; row < perSide; row++) {
    for (let column = 0; column < perSide; column++) {
      points.push([((column + 0.5) / perSide) * width, ((row + 0.5) / perSide) * height]);
    }
  }
  return points;
}

/**
 * Which boxes to keep, the best first: none that overlaps a better one too much.
 *
 * @param {[number, number, number, number][]} boxes
 * @param {number[]} scores
 * @param {number} most   intersection over union of two that both stay
 * @returns {number[]}   indices
 */
export function keptBoxes(boxes, scores, most) {
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  /** @type {number[]} */
  const kept = [];
  for (const i of order) if (kept.every((better) => overlap(boxes[better], boxes[i]) <= most)) kept.push(i);
  return kept;
}

/**
 * @param {number[]} a
 * @param {number[]} b
 */
function overlap(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const both = width * height, all = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both;
  return all > 0 ? both / all : 0;
}
