// YOLO's format for segments: https://docs.ultralytics.com/datasets/segment/
import { breathe, categoriesOf, withMask } from './exported.js';
import { fileNameOf, stemOf } from './names.js';
import { polygonsOf, wholeRing } from './polygons.js';
import { makeZip } from './zip.js';

/**
 * A ZIP of a data set of one photograph, which is to be put into its folder `images`. A line holds one closed line, so
 * that parts and holes of an object hang on each other.
 *
 * @param {import('./exported.js').Scenery} scenery
 * @param {import('./exported.js').Options} options
 */
export async function yoloZip({ photo, objects }, { tolerance = 1 }) {
  const items = withMask(objects), names = categoriesOf(items), lines = [];
  for (const { name, mask } of items) {
    const ring = wholeRing(polygonsOf(mask, tolerance));
    const shares = ring.map((value, index) => {
      const share = value / (index % 2 ? photo.height : photo.width);
      return String(Number(Math.min(1, Math.max(0, share)).toFixed(6)));
    });
    lines.push([names.indexOf(name), ...shares].join(' ') + '\n');
    await breathe();
  }
  const quoted = names.map((name, index) => `  ${index}: ${JSON.stringify(name)}\n`).join('');
  const file = fileNameOf(photo.name);
  const data = `# Put ${file} into the folder images. Training wants more photographs than this one.\n`
    + `path: .\ntrain: images\nval: images\nnames:\n${quoted}`;
  return makeZip([
    { name: 'labels/' + stemOf(photo.name) + '.txt', content: lines.join('') },
    { name: 'data.yaml', content: data },
    { name: 'classes.txt', content: names.map((name) => name + '\n').join('') },
  ]);
}
