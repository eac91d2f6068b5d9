// What of the active object lies under a pointer.
import { toStage } from './view.js';

const REACH = 11, TOUCH_REACH = 22; // CSS pixels

/**
 * @typedef {{kind: 'point', index: number}} PointHit
 * @typedef {{kind: 'corner', opposite: [number, number]}} CornerHit   a drag draws the box from the opposite one
 * @typedef {PointHit|CornerHit} Hit
 */

/**
 * @param {import('./view.js').View} view
 * @param {import('./types.js').Prompt} prompt
 * @param {{x: number, y: number, touch: boolean}} press   CSS pixels of the stage
 * @returns {Hit|null}
 */
export function hitOf(view, prompt, { x, y, touch }) {
  let nearest = touch ? TOUCH_REACH : REACH;
  /** @type {Hit|null} */
  let found = null;
  const look = (/** @type {[number, number]} */ place, /** @type {Hit} */ hit) => {
    const [left, top] = toStage(view, ...place), far = Math.hypot(left - x, top - y);
    if (far > nearest) return;
    nearest = far;
    found = hit;
  };
  prompt.points.forEach((point, index) => look(point, { kind: 'point', index }));
  if (prompt.box) {
    const [x0, y0, x1, y1] = prompt.box;
    for (const [x, y, ox, oy] of [[x0, y0, x1, y1], [x1, y0, x0, y1], [x0, y1, x1, y0], [x1, y1, x0, y0]]) {
      look([x, y], { kind: 'corner', opposite: [ox, oy] });
    }
  }
  return found;
}
