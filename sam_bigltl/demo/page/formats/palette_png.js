// Masks as pictures: one in black and white, all in numbered colours.
import { InputError } from '../types.js';
import { greyPng, palettePng } from './png.js';
import { decode } from './rle.js';

const MOST = 255; // numbers beside that of the background

/**
 * A mask: 255 on the object and 0 elsewhere.
 *
 * @param {import('../types.js').Rle} mask
 */
export function maskPng(mask) {
  const { width, height } = mask, bits = decode(mask);
  for (let at = 0; at < bits.length; at++) bits[at] = -bits[at]; // 255 of a byte
  return greyPng({ width, height }, (y, rows) => bits.subarray(y * width, (y + rows) * width));
}

/**
 * Pixels of the n-th object have the number n, those of the background 0; where objects overlap the later one counts.
 * Which is which is in the file's description.
 *
 * @param {import('./exported.js').Scenery} scenery
 */
export function objectsPng({ photo: { width, height }, objects }) {
  if (objects.length > MOST) throw new InputError(`A palette has ${MOST} numbers for objects: export fewer of them.`);
  const numbers = new Uint8Array(width * height);
  objects.forEach(({ mask }, index) => {
    const bits = decode(mask);
    for (let at = 0; at < bits.length; at++) if (bits[at]) numbers[at] = index + 1;
  });
  const text = objects.map(({ name }, index) => `${index + 1}: ${name}`).join('\n');
  return palettePng({ width, height, text }, palette(), (y, rows) => numbers.subarray(y * width, (y + rows) * width));
}

/** The colours of PASCAL VOC: every third bit of the number goes to the same channel, the lowest to its highest bit. */
function palette() {
  const colours = new Uint8Array(3 * 256);
  for (let number = 0; number < 256; number++) {
    for (let bit = 0; bit < 8; bit++) {
      colours[3 * number + bit % 3] |= ((number >> bit) & 1) << (7 - Math.floor(bit / 3));
    }
  }
  return colours;
}
