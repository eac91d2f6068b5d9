// PNG files, deflated by the browser, strip by strip. A canvas would write them too, but not in palettes, and it
// multiplies colours with their transparency before.
import { crc32 } from './crc32.js';

const STRIP = 2 ** 21; // bytes that are asked for at once
const GREY = 0, PALETTE = 3, RGBA = 6, PAETH = 4;

/**
 * @typedef {(y: number, rows: number) => Uint8Array|Uint8ClampedArray} Rows   the bytes of `rows` rows from `y` on
 * @typedef {{width: number, height: number, text?: string}} Header   text: a description in the file
 */

/**
 * @param {Header} header
 * @param {Rows} rows   a byte a pixel
 */
export const greyPng = (header, rows) => png(header, GREY, 1, [], rows);

/**
 * @param {Header} header
 * @param {Uint8Array} colours   red, green, blue of each number
 * @param {Rows} rows   a byte a pixel: a colour's number
 */
export const palettePng = (header, colours, rows) => png(header, PALETTE, 1, [chunk('PLTE', colours)], rows);

/**
 * @param {Header} header
 * @param {Rows} rows   four bytes a pixel
 */
export const rgbaPng = (header, rows) => png(header, RGBA, 4, [], rows);

/**
 * @param {Header} header
 * @param {number} colour   PNG's type of colour
 * @param {number} channels
 * @param {Uint8Array<ArrayBuffer>[]} chunks   before the pixels
 * @param {Rows} rows
 * @returns {Promise<Blob>}
 */
async function png({ width, height, text }, colour, channels, chunks, rows) {
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, colour, 0, 0, 0], 8);
  const said = text ? [chunk('iTXt', new TextEncoder().encode('Description\0\0\0\0\0' + text))] : [];
  const stream = new CompressionStream('deflate'), writer = stream.writable.getWriter();
  const written = write(writer, width * channels, height, channels === 4, rows);
  written.catch(() => {}); // it is awaited below; until then the reader may fail of the same cause
  /** @type {BlobPart[]} */
  const pixels = [];
  const reader = stream.readable.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) pixels.push(chunk('IDAT', part.value));
  await written;
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const parts = [signature, chunk('IHDR', head), ...said, ...chunks, ...pixels, chunk('IEND', new Uint8Array())];
  return new Blob(parts, { type: 'image/png' });
}

/**
 * @param {WritableStreamDefaultWriter<BufferSource>} writer
 * @param {number} length   bytes of a row
 * @param {number} height
 * @param {boolean} isPhoto   filtered as photographs are; flat colours need none
 * @param {Rows} rows
 */
async function write(writer, length, height, isPhoto, rows) {
  const step = Math.max(1, Math.floor(STRIP / length));
  /** @type {Uint8Array} */
  let above = new Uint8Array(length);
  try {
    for (let y = 0; y < height; y += step) {
      const count = Math.min(step, height - y), given = rows(y, count), out = new Uint8Array(count * (length + 1));
      const raw = new Uint8Array(given.buffer, given.byteOffset, given.length);
      for (let row = 0; row < count; row++) {
        const now = raw.subarray(row * length, (row + 1) * length), at = row * (length + 1);
        if (isPhoto) {
          out[at] = PAETH;
          filter(now, above, out, at + 1);
        } else out.set(now, at + 1);
        above = now;
      }
      await writer.ready;
      await writer.write(out);
    }
    await writer.close();
  } catch (error) {
    await writer.abort(error).catch(() => {});
    throw error;
  }
}

/**
 * PNG's filter of Paeth for four bytes a pixel.
 *
 * @param {Uint8Array} row
 * @param {Uint8Array} above
 * @param {Uint8Array} out
 * @param {number} to   where the row goes
 */
function filter(row, above, out, to) {
  for (let at = 0; at < row.length; at++) {
    const a = at < 4 ? 0 : row[at - 4], b = above[at], c = at < 4 ? 0 : above[at - 4];
    const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2 * c);
    out[to + at] = row[at] - (pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
  }
}

/**
 * @param {string} type
 * @param {Uint8Array} content
 */
function chunk(type, content) {
  const bytes = new Uint8Array(content.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, crc32(bytes.subarray(4, content.length + 8)));
  return bytes;
}
