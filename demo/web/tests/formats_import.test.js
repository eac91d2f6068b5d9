import { expect, test } from 'vitest';
import { exportFiles, importCoco } from '../../../sam_bigltl/demo/page/formats/index.js';
import { areaOf, decode, encode } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { InputError } from '../../../sam_bigltl/demo/page/types.js';
import { bitsOf, disc, iou, noise, photoOf } from './formats_toy.js';

const photo = photoOf(60, 40), bits = disc(60, 40, 30, 20, 12), mask = encode(bits, 60, 40);
const rle = { size: [40, 60], counts: mask.counts };
const coco = (segmentation, image = {}, more = {}) => JSON.stringify({
  images: [{ id: 7, file_name: 'dog.jpg', width: 60, height: 40, ...image }], categories: [{ id: 3, name: 'cup' }],
  annotations: [{ id: 1, image_id: 7, category_id: 3, segmentation }], ...more,
});

test('masks come back from what was exported, as RLE and as polygons', async () => {
  const ring = bitsOf(60, 40, (x, y) => bits[y * 60 + x] && (x - 30) ** 2 + (y - 20) ** 2 > 30);
  const objects = [
    { name: 'cup', mask }, { name: 'ring', mask: encode(ring, 60, 40) },
    { name: 'many parts', mask: encode(noise(60, 40, 0.4, 1), 60, 40) },
  ];
  const scenery = { photo, objects, regions: [], pixels: async () => null, info: {} };
  for (const options of [{}, { polygons: true, tolerance: 0 }]) {
    const { blob } = await exportFiles('coco', scenery, options);
    const { objects: found, message } = importCoco(await blob.text(), photo);
    expect(found).toEqual(objects.map(({ name, mask: base }) => ({ name, base })));
    expect(message).toBe('3 objects imported.');
  }
});

test('counts may be a list, with runs of no length, and polygons may leave the picture', () => {
  const list = importCoco(coco({ size: [40, 60], counts: [100, 5, 0, 5, 2290, 0] }), photo);
  expect(areaOf(list.objects[0].base)).toBe(10);
  expect(list.objects[0].name).toBe('cup');
  const two = [[-10, -10, 20, -10, 20, 20, -10, 20], [50, 30, 70, 30, 70, 90, 50, 90]];
  const [{ base }] = importCoco(coco(two), photo).objects;
  expect(decode(base)).toEqual(bitsOf(60, 40, (x, y) => (x < 20 && y < 20) || (x >= 50 && y >= 30)));
});

test('the image is found by its name without folder and ending, or by its size', () => {
  expect(importCoco(coco(rle, { file_name: 'train/DOG.png' }), photo).message).toBe('1 object imported.');
  expect(importCoco(coco(rle, { file_name: 'cat.jpg' }), photo).message).toMatch('found by its size');
  const other = coco(rle, { file_name: 'cat.jpg', width: 61 });
  expect(() => importCoco(other, photo)).toThrow('no image of the name dog.jpg, nor one of 60 x 40');
});

test('masks of a smaller copy are enlarged; of another shape, or turned, they are refused', () => {
  const small = { size: [20, 30], counts: encode(disc(30, 20, 15, 10, 6), 30, 20).counts };
  const { objects: [{ base }], message } = importCoco(coco(small, { width: 30, height: 20 }), photo);
  expect([base.width, base.height]).toEqual([60, 40]);
  expect(iou(decode(base), bits)).toBeGreaterThan(0.9);
  expect(message).toMatch('30 x 20');
  expect(() => importCoco(coco(rle, { width: 40, height: 60 }), photo)).toThrow('turned');
  expect(() => importCoco(coco(rle, { width: 100, height: 40 }), photo)).toThrow('100 x 40');
});

test('what cannot be read is left out and counted', () => {
  const bad = { id: 2, image_id: 7, category_id: 99, segmentation: [] };
  const good = { id: 3, image_id: 7, category_id: 99, segmentation: rle };
  const annotations = [bad, good, { image_id: 8, segmentation: rle }];
  const { objects, message } = importCoco(coco(rle, {}, { annotations }), photo);
  expect(objects.map(({ name }) => name)).toEqual(['object']);
  expect(message).toBe('1 object imported; 1 left out (its mask is empty).');
});

test('forged files end in one line', () => {
  const deep = '['.repeat(200000) + ']'.repeat(200000);
  const counts = ['PPPP', '\u2028', [-5, 2405], [1e300], ['2400'], null, {}, [[2400]]];
  const polygons = [[1], [[1, 2, 3]], [['a', 'b', 'c', 'd', 'e', 'f']], [[null, 1, 2, 3, 4, 5]], [[1, 1, 2, 2, 3, 3]]];
  const segmentations = [
    null, 1, 'x', {}, [], { size: [40, 60] }, { size: [60, 40], counts: mask.counts }, { size: 'ab', counts: '' },
    ...polygons, ...counts.map((each) => ({ size: [40, 60], counts: each })),
  ];
  const images = [
    { width: 1e9, height: 1e9 }, { width: '60' }, { width: -60, height: -40 }, { width: 0 }, { file_name: 5, width: 1 },
  ];
  const forged = [
    '', 'null', '[]', '1', '{', deep, '{"images": 1}', '{"images": [], "annotations": []}',
    '{"images": [null, 1], "annotations": [null]}', ...segmentations.map((each) => coco(each)),
    ...images.map((image) => coco(rle, image)), coco(rle, {}, { annotations: { length: 5 } }),
    coco(rle, {}, { annotations: [[], 'a', { image_id: 7 }] }),
    coco([[1e308, -1e308, -1e308, 1e308, 1e308, 1e308]]).replace('1e+308', '1e999'),
  ];
  for (const text of forged) {
    let error = null;
    try {
      importCoco(text, photo);
    } catch (caught) {
      error = caught;
    }
    expect(error, text.slice(0, 80)).toBeInstanceOf(InputError);
    expect(error.message.split('\n'), text.slice(0, 80)).toHaveLength(1);
  }
  const categories = [{ id: 3, name: { toString: 1 } }];
  const polluted = '{"__proto__": {"polluted": 1}, ' + coco(rle, {}, { categories }).slice(1);
  expect(importCoco(polluted, photo).objects[0].name).toBe('object');
  expect({}.polluted).toBeUndefined();
});
