// Files of what was made, and objects from such files.
import { InputError } from '../types.js';
import { cocoJson } from './coco.js';
import { cutoutPng, cutoutsZip, readerOf } from './cutouts.js';
import { labelStudioZip } from './label_studio.js';
import { labelmeJson } from './labelme.js';
import { safeName, stemOf } from './names.js';
import { maskPng, objectsPng } from './palette_png.js';
import { pythonCode } from './python_code.js';
import { yoloZip } from './yolo.js';

export { importCoco } from './import_coco.js';
export { maskOf } from './masks.js';

/**
 * @typedef {import('./exported.js').Scenery} Scenery
 * @typedef {import('./exported.js').Options} Options
 */

/**
 * How each kind is made, and how its file is called after the photograph (and the object, where it is of one).
 *
 * @type {Record<string, {make: (scenery: Scenery, options: Options) => Promise<Blob|string>|string, ending: string,
 *   type: string, ofOne?: boolean}>}
 */
const KINDS = {
  mask: { make: ({ objects }) => maskPng(objects[0].mask), ending: '_mask.png', type: 'image/png', ofOne: true },
  cutout: { make: cutout, ending: '_cutout.png', type: 'image/png', ofOne: true },
  cutouts: {
    make: async (scenery) => cutoutsZip(scenery, readerOf(await scenery.pixels())),
    ending: '_cutouts.zip', type: 'application/zip',
  },
  coco: { make: cocoJson, ending: '_coco.json', type: 'application/json' },
  yolo: { make: yoloZip, ending: '_yolo.zip', type: 'application/zip' },
  labelme: { make: labelmeJson, ending: '.json', type: 'application/json' }, // where labelme looks for it
  label_studio: { make: labelStudioZip, ending: '_label_studio.zip', type: 'application/zip' },
  palette: { make: async (scenery) => objectsPng(scenery), ending: '_objects.png', type: 'image/png' },
  python: { make: pythonCode, ending: '.py', type: 'text/x-python', ofOne: true },
};

/** @param {Scenery} scenery */
async function cutout({ objects, pixels }) {
  return cutoutPng(objects[0].mask, readerOf(await pixels()));
}

/**
 * A file to download.
 *
 * @param {string} kind   'mask', 'cutout' and 'python' are of the first object, the others of all
 * @param {Scenery} scenery
 * @param {Options} [options]
 * @returns {Promise<{name: string, type: string, blob: Blob}>}
 * @throws {InputError} in one line, where it cannot be
 */
export async function exportFiles(kind, scenery, options = {}) {
  if (!Object.hasOwn(KINDS, kind)) throw new InputError(`There is no export of the kind ${kind}.`);
  const { make, ending, type, ofOne } = KINDS[kind], { photo, objects } = scenery;
  if (ofOne && !objects.length) throw new InputError('There is no object to export.');
  const made = await make(scenery, options), blob = typeof made === 'string' ? new Blob([made], { type }) : made;
  const object = ofOne ? '_' + safeName(objects[0].name, 'object') : '';
  return { name: stemOf(photo.name) + object + ending, type, blob };
}
