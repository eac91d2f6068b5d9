// labelme's JSON: https://github.com/wkentaro/labelme
import { breathe, UPRIGHT, withMask } from './exported.js';
import { fileNameOf } from './names.js';
import { asOneRing, polygonsOf, rounded } from './polygons.js';

const VERSION = '5.4.0'; // whose fields these are

/**
 * The file lies beside the photograph. Parts of an object have one `group_id`; holes hang on the outline of their part,
 * since labelme's polygons know none.
 *
 * @param {import('./exported.js').Scenery} scenery
 * @param {import('./exported.js').Options} options
 */
export async function labelmeJson({ photo, objects }, { tolerance = 1 }) {
  const shapes = [];
  for (const [index, { name, mask }] of withMask(objects).entries()) {
    const parts = polygonsOf(mask, tolerance);
    for (const { outer, holes } of parts) {
      const ring = rounded(asOneRing([outer, ...holes]));
      const points = Array.from({ length: ring.length / 2 }, (_, at) => [ring[2 * at], ring[2 * at + 1]]);
      const group = parts.length > 1 ? index + 1 : null;
      const common = { description: '', shape_type: 'polygon', flags: {}, mask: null };
      shapes.push({ label: name, points, group_id: group, ...common });
    }
    await breathe();
  }
  return JSON.stringify({
    version: VERSION, flags: {}, shapes, imagePath: fileNameOf(photo.name), imageData: null, imageHeight: photo.height,
    imageWidth: photo.width, note: UPRIGHT,
  }, null, 2);
}
