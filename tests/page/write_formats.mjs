// For tests/test_demo_formats.py: node write_formats.mjs FOLDER reads scene.json and bitmaps there, and writes every export.
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { cutoutPng, cutoutsZip } from '../../sam_bigltl/demo/page/formats/cutouts.js';
import { exportFiles, importCoco, maskOf } from '../../sam_bigltl/demo/page/formats/index.js';
import { decode, encode } from '../../sam_bigltl/demo/page/formats/rle.js';

const folder = process.argv[2], read = (name) => readFile(path.join(folder, name));
const scene = JSON.parse(await read('scene.json')), { photo } = scene, pixels = await read('pixels.raw');

/** RGBA of a part of the photograph, as a canvas gives it. */
function readPart(left, top, width, height) {
  const part = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    const at = 4 * ((top + y) * photo.width + left);
    part.set(pixels.subarray(at, at + 4 * width), 4 * y * width);
  }
  return part;
}

const objects = [];
for (const [index, each] of scene.objects.entries()) {
  const base = encode(await read(`mask${index}.raw`), photo.width, photo.height);
  const mask = encode(maskOf({ strokes: each.strokes ?? [], base }, photo.width, photo.height, null), photo.width, photo.height);
  objects.push({ ...each, mask });
}
const data = { ...scene, objects, pixels: async () => null };
const jobs = [...['mask', 'coco', 'yolo', 'labelme', 'label_studio', 'palette', 'python'].map((kind) => [kind, kind, {}]),
  ['coco_polygons', 'coco', { polygons: true, tolerance: scene.tolerance }]];
const names = {};
for (const [key, kind, options] of jobs) {
  const { name, blob } = await exportFiles(kind, data, { tolerance: scene.tolerance, ...options });
  names[key] = name;
  await writeFile(path.join(folder, 'out_' + key), Buffer.from(await blob.arrayBuffer()));
}
for (const [key, blob] of [['cutout', await cutoutPng(objects[0].mask, readPart)], ['cutouts', await cutoutsZip(data, readPart)]]) {
  await writeFile(path.join(folder, 'out_' + key), Buffer.from(await blob.arrayBuffer()));
}
await writeFile(path.join(folder, 'names.json'), JSON.stringify(names));
if (scene.imported) {
  const { objects: found } = importCoco(JSON.stringify(scene.imported), photo);
  for (const [index, { base }] of found.entries()) await writeFile(path.join(folder, `imported${index}.raw`), decode(base));
}
