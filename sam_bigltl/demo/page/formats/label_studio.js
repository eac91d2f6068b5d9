// Label Studio's tasks with brush labels: https://labelstud.io/tags/brushlabels and
// https://labelstud.io/guide/task_format
import { breathe, categoriesOf, UPRIGHT, withMask } from './exported.js';
import { fileNameOf } from './names.js';
import { decode } from './rle.js';
import { makeZip } from './zip.js';

/**
 * A ZIP with the task to import, and the labelling interface that it belongs to.
 *
 * @param {import('./exported.js').Scenery} scenery
 */
export async function labelStudioZip({ photo, objects }) {
  const items = withMask(objects), result = [];
  for (const [index, { name, mask }] of items.entries()) {
    result.push({
      id: 'object' + (index + 1), type: 'brushlabels', from_name: 'label', to_name: 'image', origin: 'manual',
      original_width: photo.width, original_height: photo.height, image_rotation: 0,
      value: { format: 'rle', rle: Array.from(brushRle(decode(mask))), brushlabels: [name] },
    });
    await breathe();
  }
  const tasks = [{ data: { image: fileNameOf(photo.name) }, meta: { note: UPRIGHT }, annotations: [{ result }] }];
  const labels = categoriesOf(items).map((name) => `    <Label value="${escaped(name)}"/>\n`).join('');
  const view = '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
    + `  <BrushLabels name="label" toName="image">\n${labels}  </BrushLabels>\n</View>\n`;
  return makeZip([
    { name: 'tasks.json', content: JSON.stringify(tasks) }, { name: 'labeling_interface.xml', content: view },
  ]);
}

const LENGTHS = [3, 4, 8, 16]; // bits in which the length of a run may be written

/**
 * Label Studio's RLE, the bytes of https://docs.thi.ng/umbrella/rle-pack/: how many values there are (32 bits), the
 * bits of a value less 1 (5), four kinds of lengths in bits less 1 (4 each); and then runs: 1, the kind of length (2),
 * the length less 1, the value. Values are the four channels of every pixel, row by row, each 0 or 255.
 *
 * @param {Uint8Array} bits   row by row, 1 inside
 */
export function brushRle(bits) {
  const stream = new BitStream();
  stream.write(4 * bits.length, 32);
  stream.write(8 - 1, 5);
  for (const length of LENGTHS) stream.write(length - 1, 4);
  for (let at = 0; at < bits.length;) {
    const value = bits[at];
    let end = bits.indexOf(1 - value, at);
    if (end < 0) end = bits.length;
    for (let rest = 4 * (end - at); rest > 0;) {
      const run = Math.min(rest, 2 ** 16), kind = LENGTHS.findIndex((length) => run <= 2 ** length);
      stream.write(4 + kind, 3); // 1 and the kind
      stream.write(run - 1, LENGTHS[kind]);
      stream.write(value ? 255 : 0, 8);
      rest -= run;
    }
    at = end;
  }
  return stream.take();
}

/** Bits one after another, the highest of each byte first. */
class BitStream {
  constructor() {
    this.bytes = new Uint8Array(1024);
    this.length = 0; // bits
  }

  /**
   * @param {number} value
   * @param {number} bits
   */
  write(value, bits) {
    if (this.length + bits > 8 * this.bytes.length) {
      const larger = new Uint8Array(2 * this.bytes.length);
      larger.set(this.bytes);
      this.bytes = larger;
    }
    for (let bit = bits - 1; bit >= 0; bit--, this.length++) {
      if ((value >>> bit) & 1) this.bytes[this.length >> 3] |= 128 >> (this.length & 7);
    }
  }

  take() {
    return this.bytes.subarray(0, Math.ceil(this.length / 8));
  }
}

/** @param {string} text */
const escaped = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
