// Closed lines with fewer corners: Douglas and Peucker's choice of corners, and then sides that fit the line between
// them.

/** @typedef {import('./contours.js').Ring} Ring */

// Small and thin parts are simplified less: no side of a square of the ring's area may be so much off, nor the area.
const MOST_OFF = 1 / 24, MOST_CHANGE = 0.05;

/**
 * @param {Ring} ring
 * @param {number} tolerance   in pixels
 * @returns {Ring}
 */
export function simplified(ring, tolerance) {
  const area = areaWithin(ring);
  for (let most = Math.min(tolerance, MOST_OFF * Math.sqrt(Math.abs(area))); most >= 0.25; most /= 2) {
    const corners = cornersOf(ring, most);
    if (corners.length < 3) continue;
    const fewer = fitted(ring, corners, most);
    if (Math.abs(areaWithin(fewer) - area) <= MOST_CHANGE * Math.abs(area)) return fewer;
  }
  return ring;
}

/**
 * With its sign: positive where the ring goes clockwise on the screen.
 *
 * @param {Ring} ring
 */
export function areaWithin(ring) {
  let twice = 0;
  for (let index = 0, last = ring.length - 2; index < ring.length; last = index, index += 2) {
    twice += ring[last] * ring[index + 1] - ring[index] * ring[last + 1];
  }
  return twice / 2;
}

/**
 * Corners, as indices, such that no corner of the ring is further than `tolerance` from the side between its
 * neighbours.
 *
 * @param {Ring} ring
 * @param {number} tolerance
 * @returns {number[]}
 */
function cornersOf(ring, tolerance) {
  const count = ring.length / 2, keep = new Uint8Array(count);
  const farthest = (/** @type {number} */ from) => {
    let best = from, most = -1;
    for (let index = 0; index < count; index++) {
      const distance = (ring[2 * index] - ring[2 * from]) ** 2 + (ring[2 * index + 1] - ring[2 * from + 1]) ** 2;
      if (distance > most) {
        most = distance;
        best = index;
      }
    }
    return best;
  };
  const one = farthest(0), other = farthest(one), start = Math.min(one, other), middle = Math.max(one, other);
  keep[start] = keep[middle] = 1;
  const open = [start, middle, middle, start + count];
  while (open.length) {
    const to = /** @type {number} */ (open.pop()), from = /** @type {number} */ (open.pop());
    const ax = ring[2 * (from % count)], ay = ring[2 * (from % count) + 1];
    const dx = ring[2 * (to % count)] - ax, dy = ring[2 * (to % count) + 1] - ay, long = dx * dx + dy * dy;
    let most = tolerance * tolerance, best = -1;
    for (let index = from + 1; index < to; index++) {
      const px = ring[2 * (index % count)] - ax, py = ring[2 * (index % count) + 1] - ay;
      const along = long ? Math.min(1, Math.max(0, (px * dx + py * dy) / long)) : 0;
      const distance = (px - along * dx) ** 2 + (py - along * dy) ** 2;
      if (distance > most) {
        most = distance;
        best = index;
      }
    }
    if (best < 0) continue;
    keep[best % count] = 1;
    open.push(from, best, best, to);
  }
  const corners = [];
  for (let index = 0; index < count; index++) if (keep[index]) corners.push(index);
  return corners;
}

/**
 * The corners moved to where the lines that fit their sides meet. A side from corner to corner would cut off what
 * bulges between them, all of it on the same side: a disc would lose area all around.
 *
 * @param {Ring} ring
 * @param {number[]} corners
 * @param {number} tolerance   how far a corner may move
 * @returns {Float64Array}
 */
function fitted(ring, corners, tolerance) {
  const lines = corners.map((from, index) => lineThrough(ring, from, corners[(index + 1) % corners.length]));
  const result = new Float64Array(2 * corners.length);
  corners.forEach((corner, index) => {
    const x = ring[2 * corner], y = ring[2 * corner + 1];
    const a = lines[(index + lines.length - 1) % lines.length], b = lines[index];
    const across = a.dx * b.dy - a.dy * b.dx, t = ((b.x - a.x) * b.dy - (b.y - a.y) * b.dx) / across;
    const mx = a.x + t * a.dx, my = a.y + t * a.dy;
    const moves = Math.abs(across) > 1e-6 && Math.hypot(mx - x, my - y) <= Math.max(1, tolerance);
    result[2 * index] = moves ? mx : x;
    result[2 * index + 1] = moves ? my : y;
  });
  return result;
}

/**
 * The line of least squares through the ring's sides from one corner to another: a point of it, and its direction.
 *
 * @param {Ring} ring
 * @param {number} from
 * @param {number} to
 */
function lineThrough(ring, from, to) {
  const count = ring.length / 2, ox = ring[2 * from], oy = ring[2 * from + 1];
  let length = 0, sx = 0, sy = 0, xx = 0, xy = 0, yy = 0;
  for (let index = from; index !== to; index = (index + 1) % count) {
    const after = (index + 1) % count;
    const ax = ring[2 * index] - ox, ay = ring[2 * index + 1] - oy;
    const bx = ring[2 * after] - ox, by = ring[2 * after + 1] - oy;
    const side = Math.hypot(bx - ax, by - ay);
    length += side;
    sx += side * (ax + bx) / 2;
    sy += side * (ay + by) / 2;
    xx += side * (ax * ax + ax * bx + bx * bx) / 3;
    xy += side * (2 * ax * ay + ax * by + bx * ay + 2 * bx * by) / 6;
    yy += side * (ay * ay + ay * by + by * by) / 3;
  }
  const mx = sx / length, my = sy / length;
  const angle = Math.atan2(2 * (xy / length - mx * my), xx / length - mx * mx - (yy / length - my * my)) / 2;
  return { x: ox + mx, y: oy + my, dx: Math.cos(angle), dy: Math.sin(angle) };
}
