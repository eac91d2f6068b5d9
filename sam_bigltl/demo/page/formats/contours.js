// The outlines of a mask along the edges of its pixels, from its RLE: work grows with the outline, not with the
// picture.
import { columnEdges, Integers } from './rle.js';

/**
 * A closed line: x0, y0, x1, y1, and so on, in corners of pixels.
 *
 * @typedef {ArrayLike<number>} Ring
 */
/**
 * @typedef {{outer: Ring, holes: Ring[]}} Polygon   a part of a mask; pixels that meet at a corner alone are not
 *   connected
 */

/**
 * @param {import('../types.js').Rle} rle
 * @returns {Polygon[]}
 */
export function contoursOf(rle) {
  const { starts, edges } = columnEdges(rle), next = followers(starts, edges, rle.width);
  const columns = new Int32Array(edges.length), ringOf = new Int32Array(edges.length).fill(-1);
  for (let x = 0; x < rle.width; x++) columns.fill(x, starts[x], starts[x + 1]);
  /** @type {Polygon[]} */
  const polygons = [];
  /** @type {Polygon[]} */
  const owners = []; // of the rings, in the order in which they are found
  for (let first = 0; first < edges.length; first++) {
    if (ringOf[first] >= 0) continue;
    const ring = trace(first, next, edges, columns, starts, ringOf, owners.length);
    // The first edge of a ring, in this order, enters the mask where the ring is an outer one. Of a hole it leaves the
    // mask, and the edge before it, of the same column, enters the part that the hole is in.
    if ((first - starts[columns[first]]) % 2 === 0) {
      polygons.push({ outer: ring, holes: [] });
      owners.push(polygons[polygons.length - 1]);
    } else {
      const owner = owners[ringOf[first - 1]];
      owner.holes.push(ring);
      owners.push(owner);
    }
  }
  return polygons;
}

/**
 * Every edge, of one pixel's length between a column and its pixels' rows, with the one that follows it: the mask lies
 * on the same side of all. Edges that enter the mask go to the line of smaller x, those that leave it to the line of
 * greater x.
 *
 * @param {Int32Array} starts   see `columnEdges`
 * @param {Int32Array} edges
 * @param {number} width
 */
function followers(starts, edges, width) {
  const next = new Int32Array(edges.length), meeting = new Integers();
  for (let line = 0; line <= width; line++) {
    let a = line ? starts[line - 1] : 0, b = line < width ? starts[line] : edges.length;
    const beforeA = a, beforeB = b, endA = line ? starts[line] : 0, endB = line < width ? starts[line + 1] : b;
    meeting.length = 0; // edges that meet the line and do not go straight on, in the order of y
    while (a < endA || b < endB) {
      if (b >= endB || (a < endA && edges[a] < edges[b])) meeting.push(a++);
      else if (a >= endA || edges[b] < edges[a]) meeting.push(b++);
      else {
        const entersA = (a - beforeA) % 2 === 0, entersB = (b - beforeB) % 2 === 0;
        if (entersA && entersB) next[b] = a;
        else if (!entersA && !entersB) next[a] = b;
        else if (entersA) { // two pixels meet at a corner: each goes round itself
          meeting.push(b);
          meeting.push(a);
        } else {
          meeting.push(a);
          meeting.push(b);
        }
        a++;
        b++;
      }
    }
    for (let index = 0; index < meeting.length; index += 2) {
      const one = meeting.values[index], other = meeting.values[index + 1];
      if (arrives(one, one >= beforeB, beforeA, beforeB)) next[one] = other;
      else next[other] = one;
    }
  }
  return next;
}

/**
 * Whether an edge that meets a line ends there.
 *
 * @param {number} edge
 * @param {boolean} isAfter   it is of the column after the line
 * @param {number} beforeA   the first edge of the column before the line
 * @param {number} beforeB   the first edge of the column after it
 */
function arrives(edge, isAfter, beforeA, beforeB) {
  return isAfter === ((edge - (isAfter ? beforeB : beforeA)) % 2 === 0);
}

/**
 * @param {number} first
 * @param {Int32Array} next
 * @param {Int32Array} edges
 * @param {Int32Array} columns
 * @param {Int32Array} starts
 * @param {Int32Array} ringOf   where the ring's edges are marked
 * @param {number} ring
 * @returns {Int32Array}
 */
function trace(first, next, edges, columns, starts, ringOf, ring) {
  const line = new Integers(16);
  let edge = first;
  do {
    ringOf[edge] = ring;
    const after = next[edge];
    if (edges[after] !== edges[edge]) {
      const x = columns[edge] + (edge - starts[columns[edge]]) % 2;
      line.push(x);
      line.push(edges[edge]);
      line.push(x);
      line.push(edges[after]);
    }
    edge = after;
  } while (edge !== first);
  return line.values.slice(0, line.length);
}
