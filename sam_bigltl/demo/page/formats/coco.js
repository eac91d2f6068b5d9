// COCO's instances: https://cocodataset.org/#format-data
import { breathe, categoriesOf, UPRIGHT, withMask } from './exported.js';
import { fileNameOf } from './names.js';
import { asOneRing, polygonsOf, rounded } from './polygons.js';
import { areaOf, boundsOf } from './rle.js';
import { resized } from './scale.js';

/**
 * @typedef {import('./exported.js').Scenery} Scenery
 * @typedef {import('../types.js').Rle} Rle
 */

/**
 * All objects, and the regions of everything mode as the category "region". `prompt` is what the user pointed at.
 *
 * @param {Scenery} scenery
 * @param {import('./exported.js').Options} options
 */
export async function cocoJson({ photo, objects, regions, info }, { polygons = false, tolerance = 1 }) {
  const { width, height } = photo, items = withMask(objects), annotations = [];
  const names = categoriesOf([...items, ...(regions.length ? [{ name: 'region' }] : [])]);
  const common = (/** @type {string} */ name, /** @type {Rle} */ mask) => ({
    id: annotations.length + 1, image_id: 1, category_id: 1 + names.indexOf(name), iscrowd: 0,
    segmentation: polygons ? segments(mask, tolerance) : { size: [height, width], counts: mask.counts },
    bbox: boundsOf(mask), area: areaOf(mask),
  });
  for (const { name, mask, iou, prompt } of items) {
    const predicted = typeof iou === 'number' ? { predicted_iou: Number(iou.toFixed(6)) } : {};
    annotations.push({ ...common(name, mask), ...predicted, prompt: promptRecord(prompt) });
    await breathe();
  }
  for (const { mask, iou, stability, point } of regions) {
    const whole = resized(mask, width, height);
    if (areaOf(whole) === 0) continue;
    const scores = { predicted_iou: Number(iou.toFixed(6)), stability_score: Number(stability.toFixed(6)) };
    annotations.push({ ...common('region', whole), ...scores, prompt: { point_coords: [rounded(point)] } });
    await breathe();
  }
  return JSON.stringify({
    info: {
      description: 'Masks of ' + fileNameOf(photo.name) + (info.model ? `, made with ${info.model} of sam_bigltl` : ''),
      date_created: new Date().toISOString(), note: UPRIGHT + noteOf(regions, width),
    },
    images: [{ id: 1, file_name: fileNameOf(photo.name), width, height }],
    categories: names.map((name, index) => ({ id: index + 1, name })),
    annotations,
  }, null, 1);
}

/**
 * @param {import('../types.js').Region[]} regions
 * @param {number} width
 */
function noteOf(regions, width) {
  const small = regions.find(({ mask }) => mask.width !== width)?.mask;
  return small ? ` Masks of the category "region" were computed at ${small.width} x ${small.height} and enlarged.` : '';
}

/**
 * Every part as a polygon. Holes hang on the outline of their part, since COCO adds polygons up.
 *
 * @param {Rle} mask
 * @param {number} tolerance
 */
const segments = (mask, tolerance) =>
  polygonsOf(mask, tolerance).map(({ outer, holes }) => rounded(asOneRing([outer, ...holes])));

/** @param {import('../types.js').Prompt|null|undefined} prompt */
function promptRecord(prompt) {
  /** @type {{box?: number[], point_coords?: number[][], point_labels?: number[]}} */
  const record = {};
  if (prompt?.box) record.box = rounded(prompt.box);
  if (prompt?.points.length) {
    record.point_coords = prompt.points.map(rounded);
    record.point_labels = prompt.labels;
  }
  return record;
}
