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

/**
 * Rings as a single one, for formats that know neither holes nor parts: the others hang on lines without width, which
 * go there and back, so that what is inside stays the same.
 *
 * @param {Ring[]} rings
 * @returns {number[]}
 */
export function asOneRing(rings) {
  let whole = Array.from(rings[0] ?? []);
  for (const ring of rings.slice(1)) {
    const [at, from] = nearest(whole, ring), line = [];
    for (let index = 0; index <= ring.length; index += 2) { // round and back to where it began
      const place = (from + index) % ring.length;
      line.push(ring[place], ring[place + 1]);
    }
    whole = [...whole.slice(0, at + 2), ...line, ...whole.slice(at)];
  }
  return whole;
}

/**
 * Which corners of two rings lie near each other. Of the second only its leftmost is tried.
 *
 * @param {Ring} ring
 * @param {Ring} other
 */
function nearest(ring, other) {
  let from = 0, at = 0, least = Infinity;
  for (let index = 2; index < other.length; index += 2) if (other[index] < other[from]) from = index;
  for (let index = 0; index < ring.length; index += 2) {
    const distance = (ring[index] - other[from]) ** 2 + (ring[index + 1] - other[from + 1]) ** 2;
    if (distance < least) {
      least = distance;
      at = index;
    }
  }
  return [at, from];
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
