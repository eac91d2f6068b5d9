// Objects from a COCO JSON, of which nothing is taken for granted.
import { InputError } from '../types.js';
import { fillRing } from './fill.js';
import { stemOf } from './names.js';
import { areaOf, encode, rleOfSpans, runsOf, spansOfRuns } from './rle.js';
import { resized } from './scale.js';

/**
 * @typedef {import('../types.js').Photo} Photo
 * @typedef {import('../types.js').Rle} Rle
 * @typedef {Record<string, unknown>} Fields
 * @typedef {{id: unknown, width: number, height: number, byName: boolean}} Picture
 */

const MOST_OBJECTS = 200, MOST_PIXELS = 100_000_000;

/**
 * The objects of a photograph in a COCO JSON: their masks at the photograph's size. What cannot be read is left out,
 * and counted.
 *
 * @param {string} text
 * @param {Photo} photo
 * @returns {{objects: {name: string, base: Rle}[], message: string}}
 * @throws {InputError} in one line, where there is nothing to import
 */
export function importCoco(text, photo) {
  const { images, annotations, categories } = contentsOf(text), picture = pictureOf(images, photo);
  const names = new Map(categories.map(({ id, name }) => [id, typeof name === 'string' ? name : '']));
  const own = annotations.filter(({ image_id: id }) => id === picture.id);
  const objects = [], reasons = [];
  for (const annotation of own.slice(0, MOST_OBJECTS)) {
    try {
      const mask = resized(maskIn(annotation, picture), photo.width, photo.height);
      if (!areaOf(mask)) throw new InputError('its mask is empty');
      objects.push({ name: names.get(annotation.category_id) || 'object', base: mask });
    } catch (error) {
      reasons.push(error instanceof InputError ? error.message : 'its segmentation cannot be read');
    }
  }
  if (!objects.length) {
    throw new InputError('It has no mask for this photograph' + (reasons.length ? ': ' + reasons[0] : '') + '.');
  }
  return { objects, message: messageOf(objects.length, reasons, own.length, picture, photo) };
}

/**
 * @param {string} text
 * @returns {{images: Fields[], annotations: Fields[], categories: Fields[]}}
 */
function contentsOf(text) {
  /** @type {unknown} */
  let root;
  try {
    root = JSON.parse(text);
  } catch {
    throw new InputError('It is not JSON: give a COCO JSON.');
  }
  if (!isFields(root) || !Array.isArray(root.images) || !Array.isArray(root.annotations)) {
    throw new InputError('It is not a COCO JSON: it has no lists "images" and "annotations".');
  }
  const { images, annotations, categories = [] } = root;
  const fieldsOf = (/** @type {unknown} */ list) => (Array.isArray(list) ? list.filter(isFields) : []);
  return { images: fieldsOf(images), annotations: fieldsOf(annotations), categories: fieldsOf(categories) };
}

/**
 * @param {unknown} value
 * @returns {value is Fields}
 */
const isFields = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * The entry of the photograph: of its name, or the only one of its size.
 *
 * @param {Fields[]} images
 * @param {Photo} photo
 * @returns {Picture}
 */
function pictureOf(images, photo) {
  const fits = (/** @type {Fields} */ image) => image.width === photo.width && image.height === photo.height;
  const stem = stemOf(photo.name).toLowerCase();
  const named = images.filter(({ file_name: name }) => typeof name === 'string' && stemOf(name).toLowerCase() === stem);
  const sized = images.filter(fits), alone = sized.length === 1 ? sized[0] : undefined;
  const found = named.find(fits) ?? named[0] ?? alone, size = `${photo.width} x ${photo.height}`;
  if (!found) {
    const others = sized.length ? `and ${sized.length} of ${size}` : `nor one of ${size}`;
    throw new InputError(`It has no image of the name ${photo.name}, ${others}.`);
  }
  const { width, height, id } = found;
  if (!isCount(width) || !isCount(height) || width * height > MOST_PIXELS || !width || !height) {
    throw new InputError('Its image has no width and height that can be.');
  }
  const scale = photo.width / width, off = Math.abs(height * scale - photo.height);
  if (off > Math.max(1, scale)) {
    const isTurned = width === photo.height && height === photo.width;
    const turned = isTurned ? ', turned: it was labelled without its EXIF orientation' : '';
    throw new InputError(`Its image is ${width} x ${height}, and this photograph ${size}${turned}.`);
  }
  return { id, width, height, byName: named.length > 0 };
}

/**
 * @param {unknown} value
 * @returns {value is number}
 */
const isCount = (value) => Number.isInteger(value) && Number(value) >= 0;

/**
 * @param {Fields} annotation
 * @param {Picture} picture
 * @returns {Rle}
 */
function maskIn({ segmentation }, { width, height }) {
  if (Array.isArray(segmentation)) return maskOfPolygons(segmentation, width, height);
  if (!isFields(segmentation)) throw new InputError('it has no segmentation');
  const { size, counts } = segmentation;
  if (!Array.isArray(size) || size[0] !== height || size[1] !== width) {
    throw new InputError(`the size of an RLE is not [${height}, ${width}] as its image says`);
  }
  if (typeof counts !== 'string' && !(Array.isArray(counts) && counts.every(isCount))) {
    throw new InputError('an RLE has no counts');
  }
  const runs = typeof counts === 'string' ? runsOf(counts) : counts;
  return rleOfSpans(spansOfRuns(runs, width * height), width, height);
}

/**
 * @param {unknown[]} polygons
 * @param {number} width
 * @param {number} height
 */
function maskOfPolygons(polygons, width, height) {
  let left = width, top = height, right = 0, bottom = 0; // what holds all of them
  for (const polygon of polygons) {
    if (!Array.isArray(polygon) || polygon.length % 2 || !polygon.every(Number.isFinite)) {
      throw new InputError('a polygon is not a list of x, y pairs');
    }
    for (let index = 0; index < polygon.length; index += 2) {
      left = Math.min(left, Math.max(0, Math.floor(polygon[index])));
      right = Math.max(right, Math.min(width, Math.ceil(polygon[index])));
      top = Math.min(top, Math.max(0, Math.floor(polygon[index + 1])));
      bottom = Math.max(bottom, Math.min(height, Math.ceil(polygon[index + 1])));
    }
  }
  const columns = Math.max(0, right - left), rows = Math.max(0, bottom - top), bits = new Uint8Array(columns * rows);
  for (const polygon of /** @type {number[][]} */ (polygons)) {
    const moved = Float64Array.from(polygon, (value, index) => value - (index % 2 ? top : left));
    if (moved.length >= 6) fillRing(bits, columns, rows, moved);
  }
  return encode(bits, width, height, [left, top, columns, rows]);
}

/**
 * @param {number} count
 * @param {string[]} reasons
 * @param {number} all
 * @param {Picture} picture
 * @param {Photo} photo
 */
function messageOf(count, reasons, all, picture, photo) {
  const parts = [`${count} object${count > 1 ? 's' : ''} imported`];
  if (reasons.length) parts.push(`${reasons.length} left out (${reasons[0]})`);
  if (all > MOST_OBJECTS) parts.push(`only the first ${MOST_OBJECTS} of ${all} were read`);
  if (picture.width !== photo.width || picture.height !== photo.height) {
    parts.push(`their masks were of ${picture.width} x ${picture.height} and are brought to the photograph's size`);
  }
  if (!picture.byName) parts.push('the image was found by its size, not by its name');
  return parts.join('; ') + '.';
}
