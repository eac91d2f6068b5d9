// Photographs as the model takes them, from files of any kind that the browser reads.
import { BackendError } from '../../../sam_bigltl/demo/page/types.js';
import { longestSide, Resampler } from './resample.js';

const MOST_PIXELS = 80_000_000, STRIP = 2 ** 21; // pixels

/**
 * A photograph: its file, its upright size, and its pixels in the model's frame.
 *
 * @typedef {{key: string, name: string, file: Blob, width: number, height: number, rgb: Uint8Array,
 *   input: {width: number, height: number}}} Photograph
 */

/**
 * @param {Blob} file
 * @param {string} name
 * @param {number} side   of the model's input
 * @param {number} mostBytes
 * @returns {Promise<Photograph>}
 */
export async function readPhotograph(file, name, side, mostBytes) {
  if (!file.size) throw new BackendError(`${name} is empty (0 bytes): choose a JPEG, PNG or other image file.`);
  if (file.size > mostBytes) {
    const [has, most] = [file.size, mostBytes].map((bytes) => Math.round(bytes / 2 ** 20));
    throw new BackendError(`${name} has ${has} MB: ${most} MB at most.`);
  }
  const key = await keyOf(file);
  let picture;
  try {
    picture = await createImageBitmap(file, {
      colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'from-image',
    });
  } catch {
    const heic = /\.hei[cf]$/i.test(name) ? 'HEIC: export it as JPEG' : 'give a JPEG, PNG or WebP file';
    throw new BackendError(`${name} is not an image that this browser can read: ${heic}.`);
  }
  try {
    const { width, height } = picture;
    if (width * height > MOST_PIXELS) {
      const millions = Math.round(width * height / 1e6);
      throw new BackendError(`${name} has ${millions} megapixels: ${MOST_PIXELS / 1e6} at most.`);
    }
    const input = longestSide(picture, side);
    return { key, name, file, width, height, input, rgb: pixelsOf(picture, input) };
  } finally {
    picture.close();
  }
}

/**
 * RGB of a picture made smaller or larger, over white, taken strip by strip.
 *
 * @param {ImageBitmap} picture
 * @param {{width: number, height: number}} size
 */
function pixelsOf(picture, size) {
  const { width, height } = picture, rows = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
  const resampler = new Resampler(width, height, size.width, size.height);
  const context = new OffscreenCanvas(width, rows).getContext('2d', { willReadFrequently: true });
  if (!context) throw new BackendError('This browser gives no memory for the photograph: close other pages.');
  for (let row = 0; row < height; row += rows) {
    const count = Math.min(rows, height - row);
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, count);
    context.drawImage(picture, 0, row, width, count, 0, 0, width, count);
    resampler.add(context.getImageData(0, 0, width, count).data, row);
  }
  return resampler.finish();
}

/**
 * The same for the same file: two 32-bit FNV-1a hashes of its bytes. Not the browser's digests, which need https.
 *
 * @param {Blob} file
 */
async function keyOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let a = 0x811c9dc5, b = 0x9e3779b9;
  for (const byte of bytes) {
    a = Math.imul(a ^ byte, 0x01000193);
    b = Math.imul(b ^ byte, 0x01000193) + byte;
  }
  return [a, b, bytes.length].map((number) => (number >>> 0).toString(16).padStart(8, '0')).join('');
}
