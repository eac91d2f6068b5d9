import { expect, test } from 'vitest';
import { inflateRawSync } from 'node:zlib';
import { cutoutPng } from '../../../sam_bigltl/demo/page/formats/cutouts.js';
import { exportFiles } from '../../../sam_bigltl/demo/page/formats/index.js';
import { brushRle } from '../../../sam_bigltl/demo/page/formats/label_studio.js';
import { safeName, stemOf, uniqueNames } from '../../../sam_bigltl/demo/page/formats/names.js';
import { encode } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { makeZip } from '../../../sam_bigltl/demo/page/formats/zip.js';
import { disc, photoOf } from './formats_toy.js';

const mask = encode(disc(60, 40, 30, 20, 12), 60, 40), empty = encode(new Uint8Array(2400), 60, 40);
const prompt = { points: [[30, 20], [2, 2]], labels: [1, 0], box: [10, 5, 50, 35] };
const scenery = (objects = [{ name: 'cup', mask, iou: 0.9, prompt, choice: 1 }], more = {}) => ({
  photo: photoOf(60, 40), objects, regions: [], pixels: async () => { throw new Error('no pixels'); },
  info: { model: 'bigltl_mini', routed: true, keep_ratio: 0.5 }, ...more,
});
const textOf = async (kind, data, options) => (await exportFiles(kind, data, options)).blob.text();

/** Names and texts of a ZIP, from its directory. */
async function unzipped(blob) {
  const bytes = Buffer.from(await blob.arrayBuffer()), files = {};
  let at = bytes.readUInt32LE(bytes.length - 6);
  for (let count = bytes.readUInt16LE(bytes.length - 12); count; count--) {
    const method = bytes.readUInt16LE(at + 10), length = bytes.readUInt16LE(at + 28);
    const size = bytes.readUInt32LE(at + 20), local = bytes.readUInt32LE(at + 42);
    const start = local + 30 + bytes.readUInt16LE(local + 26), packed = bytes.subarray(start, start + size);
    files[bytes.toString('utf8', at + 46, at + 46 + length)] = String(method ? inflateRawSync(packed) : packed);
    at += 46 + length;
  }
  return files;
}

test('files are called after the photograph and the object', async () => {
  const kinds = ['mask', 'coco', 'yolo', 'labelme', 'label_studio', 'palette', 'python'];
  const names = await Promise.all(kinds.map(async (kind) => (await exportFiles(kind, scenery())).name));
  expect(names).toEqual(['dog_cup_mask.png', 'dog_coco.json', 'dog_yolo.zip', 'dog.json', 'dog_label_studio.zip',
    'dog_objects.png', 'dog_cup.py']);
});

test('names hold nothing that a system refuses', () => {
  expect(safeName('../../etc/passwd', 'x')).toBe('etc passwd');
  expect(safeName('a\u0000b\nc\u202egnp.exe', 'x')).toBe('a b c gnp.exe');
  expect(safeName('con', 'x')).toBe('_con');
  expect(safeName('\ud800 ...', 'x')).toBe('x');
  expect([...safeName('😀'.repeat(200), 'x')]).toHaveLength(80);
  expect(stemOf('C:\\photos\\my.dog.JPG')).toBe('my.dog');
  expect(stemOf('.hidden')).toBe('hidden');
  expect(uniqueNames(['a.png', 'A.png', 'a (2).png'])).toEqual(['a.png', 'A (2).png', 'a (2) (2).png']);
});

test('a ZIP holds every file under a name of its own, inside its folder', async () => {
  const zip = await makeZip([
    { name: '../../evil.txt', content: 'one' }, { name: '/evil.txt', content: 'two' },
    { name: 'ordner/Größe.txt', content: 'x'.repeat(5000) }, { name: '..', content: 'three' },
    { name: 's', content: 'raw', stored: true },
  ]);
  expect(await unzipped(zip)).toEqual({
    'evil.txt': 'one', 'evil (2).txt': 'two', 'ordner/Größe.txt': 'x'.repeat(5000), 'file': 'three', 's': 'raw',
  });
  expect(zip.size).toBeLessThan(1500);
});

test('COCO has the size and the name of the original, scores, prompts and categories', async () => {
  const regions = [{ mask: encode(disc(30, 20, 10, 10, 6), 30, 20), iou: 0.8, stability: 0.95, point: [20, 20] }];
  const objects = [{ name: 'cup', mask, iou: 0.9, prompt }, { name: 'cup', mask }, { name: 'none', mask: empty }];
  const coco = JSON.parse(await textOf('coco', scenery(objects, { regions })));
  expect(coco.images).toEqual([{ id: 1, file_name: 'dog.jpg', width: 60, height: 40 }]);
  expect(coco.categories.map(({ name }) => name)).toEqual(['cup', 'region']);
  expect(coco.annotations.map((one) => one.category_id)).toEqual([1, 1, 2]);
  expect(coco.annotations.map((one) => one.segmentation.size)).toEqual([[40, 60], [40, 60], [40, 60]]);
  expect(coco.annotations[0]).toMatchObject({
    predicted_iou: 0.9, prompt: { box: [10, 5, 50, 35], point_coords: [[30, 20], [2, 2]], point_labels: [1, 0] },
  });
  expect(coco.annotations[1]).not.toHaveProperty('predicted_iou');
  expect(coco.info.note).toMatch(/EXIF orientation.*computed at 30 x 20/);
});

test('COCO has polygons where they are asked for', async () => {
  const [{ segmentation }] = JSON.parse(await textOf('coco', scenery(), { polygons: true, tolerance: 1 })).annotations;
  expect(segmentation).toHaveLength(1);
  expect(segmentation[0].length).toBeGreaterThanOrEqual(16);
});

test('YOLO has one line an object, coordinates as shares, and quoted names', async () => {
  const files = await unzipped((await exportFiles('yolo', scenery([
    { name: 'cup', mask }, { name: 'a "b": #c', mask }, { name: 'cup', mask },
  ]))).blob);
  const lines = files['labels/dog.txt'].trim().split('\n').map((line) => line.split(' ').map(Number));
  expect(lines.map(([category]) => category)).toEqual([0, 1, 0]);
  expect(lines.every((line) => line.length % 2 && line.slice(1).every((share) => share >= 0 && share <= 1))).toBe(true);
  expect(files['classes.txt']).toBe('cup\na "b": #c\n');
  expect(files['data.yaml']).toContain('  1: "a \\"b\\": #c"\n');
});

test('Label Studio gets its interface with the task, labels escaped', async () => {
  const files = await unzipped((await exportFiles('label_studio', scenery([{ name: '<a & "b">', mask }]))).blob);
  const [{ data, annotations: [{ result: [one] }] }] = JSON.parse(files['tasks.json']);
  expect(data.image).toBe('dog.jpg');
  expect(one).toMatchObject({ original_width: 60, original_height: 40, type: 'brushlabels', image_rotation: 0 });
  expect(one.value.brushlabels).toEqual(['<a & "b">']);
  expect(files['labeling_interface.xml']).toContain('<Label value="&#60;a &#38; &#34;b&#34;&#62;"/>');
});

test('brush RLE begins with the number of values and the sizes of its words', () => {
  const bytes = brushRle(Uint8Array.of(0, 1));
  // 8 values of 8 bits, lengths of 3, 4, 8 and 16 bits; then 4 zeros and 4 times 255, each as 1, 00, 011 and the value
  const bits = Array.from(bytes, (byte) => byte.toString(2).padStart(8, '0')).join('');
  expect(bits).toMatch(/^0{28}1000001110010001101111111100011000000001000111111111100*$/);
});

test('the Python call names the weights without their folder', async () => {
  const checkpoint = '/srv/secret/models/mini.safetensors';
  const info = { checkpoint, dtype: 'int8', native: true, routed: true, keep_ratio: 'auto' };
  const code = await textOf('python', scenery(undefined, { info, photo: photoOf(60, 40, '/srv/secret/my "dog".jpg') }));
  expect(code).not.toMatch(/secret/);
  expect(code).toContain('load_sam("mini.safetensors")');
  expect(code).toContain('optimize("int8", native=True)');
  expect(code).toContain('keep_ratio = "auto"');
  expect(code).toContain('point_coords=np.array([[30, 20], [2, 2]]), point_labels=np.array([1, 0])');
  expect(code).toContain(', box=np.array([10, 5, 50, 35]))\n');
  expect(code).toContain('mask = masks[1]  # cup\n');
  const none = [{ name: 'a\nimport os', mask, prompt: { points: [], labels: [], box: null } }];
  expect((await textOf('python', scenery(none))).trim().split('\n')).toHaveLength(1);
});

test('a cut-out is read strip by strip, and is transparent around', async () => {
  const asked = [];
  const png = await cutoutPng(mask, (x, y, width, height) => {
    asked.push([x, y, width, height]);
    return new Uint8ClampedArray(4 * width * height).fill(200);
  });
  expect(asked).toEqual([[18, 8, 24, 24]]);
  expect(png.type).toBe('image/png');
  expect((await cutoutPng(empty, () => { throw new Error('nothing to read'); })).size).toBeLessThan(100);
});

test('what cannot be exported is said in one line', async () => {
  await expect(exportFiles('toString', scenery())).rejects.toThrow('no export of the kind toString');
  await expect(exportFiles('mask', scenery([]))).rejects.toThrow('no object');
  await expect(exportFiles('cutout', scenery())).rejects.toThrow('no pixels');
  await expect(exportFiles('palette', scenery(Array(256).fill({ name: 'a', mask })))).rejects.toThrow('255 numbers');
});
