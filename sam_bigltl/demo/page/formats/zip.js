// ZIP files, deflated by the browser.
import { InputError } from '../types.js';
import { crc32 } from './crc32.js';
import { safeName, uniqueNames } from './names.js';

/** @typedef {{name: string, content: Blob|string, stored?: boolean}} Entry   stored: it is compressed already */

const MOST = 0xffffffff, UTF8 = 0x0800, VERSION = 20;

/**
 * @param {Entry[]} entries   a name may have folders; each part is made safe, and names are made to differ
 * @returns {Promise<Blob>}
 */
export async function makeZip(entries) {
  const names = uniqueNames(entries.map(({ name }) => safePath(name)));
  /** @type {BlobPart[]} */
  const parts = [];
  /** @type {Uint8Array<ArrayBuffer>[]} */
  const directory = [];
  const time = dosTime(new Date());
  let offset = 0;
  for (const [index, { content, stored }] of entries.entries()) {
    const blob = typeof content === 'string' ? new Blob([content]) : content;
    const sum = crc32(new Uint8Array(await blob.arrayBuffer()));
    const packed = stored ? blob : await deflated(blob);
    const name = new TextEncoder().encode(names[index]);
    const common = [VERSION, UTF8, stored ? 0 : 8, time.clock, time.day];
    const sizes = [sum, packed.size, blob.size];
    const local = record([0x04034b50, ...common, ...sizes, name.length, 0], '42222244422', name);
    const central = [0x02014b50, VERSION, ...common, ...sizes, name.length, 0, 0, 0, 0, 0, offset];
    directory.push(record(central, '42222224442222244', name));
    parts.push(local, packed);
    offset += local.length + packed.size;
    if (offset > MOST) throw new InputError('A ZIP holds 4 GB at most: export fewer objects.');
  }
  const length = directory.reduce((sum, each) => sum + each.length, 0);
  const counts = [entries.length, entries.length];
  const end = record([0x06054b50, 0, 0, ...counts, length, offset, 0], '42222442', new Uint8Array());
  return new Blob([...parts, ...directory, end], { type: 'application/zip' });
}

/** @param {string} path */
function safePath(path) {
  const parts = path.split('/').filter((part) => part && part !== '.' && part !== '..');
  return parts.map((part) => safeName(part, 'file')).join('/') || 'file';
}

/**
 * Numbers of 2 or 4 bytes, and a name.
 *
 * @param {number[]} values
 * @param {string} sizes   one digit a value
 * @param {Uint8Array} name
 */
function record(values, sizes, name) {
  const length = [...sizes].reduce((sum, size) => sum + Number(size), 0), bytes = new Uint8Array(length + name.length);
  const view = new DataView(bytes.buffer);
  let at = 0;
  values.forEach((value, index) => {
    if (sizes[index] === '2') view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += Number(sizes[index]);
  });
  bytes.set(name, at);
  return bytes;
}

/** @param {Blob} blob */
const deflated = (blob) => new Response(blob.stream().pipeThrough(new CompressionStream('deflate-raw'))).blob();

/** @param {Date} date */
function dosTime(date) {
  const year = Math.max(0, date.getFullYear() - 1980);
  return {
    clock: (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1),
    day: (year << 9) | ((date.getMonth() + 1) << 5) | date.getDate(),
  };
}
