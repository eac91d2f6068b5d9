// What is exported, as all formats take it.
import { areaOf } from './rle.js';

/**
 * @typedef {import('../types.js').Photo} Photo
 * @typedef {import('../types.js').Prompt} Prompt
 * @typedef {import('../types.js').Region} Region
 * @typedef {import('../types.js').Rle} Rle
 */
/**
 * An object: its mask is at the photograph's size, strokes included.
 *
 * @typedef {{name: string, mask: Rle, iou?: number|null, prompt?: Prompt|null, choice?: number|null}} Exported
 */
/**
 * @typedef {object} Scenery
 * @property {Photo} photo
 * @property {Exported[]} objects
 * @property {Region[]} regions   of everything mode; their masks may be smaller than the photograph
 * @property {() => Promise<ImageBitmap|HTMLCanvasElement>} pixels   the upright photograph at its full size
 * @property {Partial<import('../types.js').Info> & {checkpoint?: string, dtype?: string, native?: boolean}} info
 */
/**
 * @typedef {{polygons?: boolean, tolerance?: number}} Options   polygons: in COCO, instead of RLE; tolerance: of
 *   polygons, in pixels
 */

/** Said in every format that has a place for it. */
export const UPRIGHT = 'Coordinates are pixels of the upright photograph: the EXIF orientation of its file is applied.';

/** @param {Exported[]} objects */
export const withMask = (objects) => objects.filter(({ mask }) => areaOf(mask) > 0);

/**
 * Names of objects in the order in which they come first: the categories.
 *
 * @param {{name: string}[]} objects
 */
export const categoriesOf = (objects) => [...new Set(objects.map(({ name }) => name))];

/** A moment for the page between two pieces of work. */
export const breathe = () => new Promise((resolve) => setTimeout(resolve));
