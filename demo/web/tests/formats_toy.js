// Bitmaps for the tests of formats, and what pixels two of them share.

/** A disc, row by row. */
export function disc(width, height, cx, cy, radius) {
  return bitsOf(width, height, (x, y) => (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius * radius);
}

export function bitsOf(width, height, inside) {
  return Uint8Array.from({ length: width * height }, (_, at) => Number(inside(at % width, Math.floor(at / width))));
}

/** Pixels by chance, the same for the same seed. */
export function noise(width, height, share, seed) {
  let state = seed;
  return Uint8Array.from({ length: width * height }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 < share ? 1 : 0;
  });
}

/** Rows of text, "#" inside. */
export function drawn(...rows) {
  const bits = Uint8Array.from(rows.join(''), (sign) => Number(sign === '#'));
  return { bits, width: rows[0].length, height: rows.length };
}

export function iou(a, b) {
  let both = 0, either = 0;
  a.forEach((bit, at) => {
    both += bit & b[at];
    either += bit | b[at];
  });
  return either ? both / either : 1;
}

export const photoOf = (width, height, name = 'dog.jpg') => ({ key: 'k', name, width, height, note: '' });
