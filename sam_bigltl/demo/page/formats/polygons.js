// The outlines of a mask as polygons with few corners.
import { contoursOf } from './contours.js';
import { areaWithin, simplified } from './simplify.js';

/**
 * @typedef {import('./contours.js').Polygon} Polygon
 * @typedef {import('./contours.js').Ring} Ring
 */

/**
 * The parts of a mask, the largest first.
 *
 * @param {import('../types.js').Rle} rle
 * @param {number} [tolerance]   how far a polygon may leave the outline, in pixels; 0: along the pixels exactly
 * @returns {Polygon[]}
 */
export function polygonsOf(rle, tolerance = 0) {
  const parts = contoursOf(rle).map(({ outer, holes }) => ({
    outer: simplified(outer, tolerance), holes: holes.map((hole) => simplified(hole, tolerance)),
  }));
  const areas = new Map(parts.map((part) => [part, Math.abs(areaWithin(part.outer))]));
  return parts.sort((a, b) => (areas.get(b) ?? 0) - (areas.get(a) ?? 0));
}

const MOST_SEARCHED = 500; // rings; with more of them the nearest corners would take too long to find

/**
 * Rings as a single one, for formats that know neither holes nor parts: the others hang on lines without width, which
 * go there and back, so that what is inside stays the same.
 *
 * @param {Ring[]} rings
 * @returns {number[]}
 */
export function asOneRing(rings) {
  const [first = [], ...others] = rings, from = others.map(leftmost);
  /** @type {Map<number, number[]>} */
  const hanging = new Map(); // which of the others hang on which corner of the first
  others.forEach((ring, index) => {
    const at = others.length > MOST_SEARCHED ? 0 : nearest(first, ring[from[index]], ring[from[index] + 1]);
    const there = hanging.get(at);
    if (there) there.push(index);
    else hanging.set(at, [index]);
  });
  const whole = [];
  for (let at = 0; at < first.length; at += 2) {
    whole.push(first[at], first[at + 1]);
    for (const index of hanging.get(at) ?? []) {
      const ring = others[index];
      for (let step = 0; step <= ring.length; step += 2) { // round and back to where it began
        const place = (from[index] + step) % ring.length;
        whole.push(ring[place], ring[place + 1]);
      }
      whole.push(first[at], first[at + 1]);
    }
  }
  return whole;
}

/** @param {Ring} ring */
function leftmost(ring) {
  let best = 0;
  for (let index = 2; index < ring.length; index += 2) if (ring[index] < ring[best]) best = index;
  return best;
}

/**
 * The corner of a ring that is nearest to a place.
 *
 * @param {Ring} ring
 * @param {number} x
 * @param {number} y
 */
function nearest(ring, x, y) {
  let best = 0, least = Infinity;
  for (let index = 0; index < ring.length; index += 2) {
    const distance = (ring[index] - x) ** 2 + (ring[index + 1] - y) ** 2;
    if (distance < least) {
      least = distance;
      best = index;
    }
  }
  return best;
}

/**
 * All rings of an object as one.
 *
 * @param {Polygon[]} polygons
 */
export const wholeRing = (polygons) => asOneRing(polygons.flatMap(({ outer, holes }) => [outer, ...holes]));

/**
 * Coordinates as files hold them: no more digits than a pixel has use for.
 *
 * @param {ArrayLike<number>} ring
 * @returns {number[]}
 */
export const rounded = (ring) => Array.from(ring, (value) => Math.round(value * 100) / 100);
