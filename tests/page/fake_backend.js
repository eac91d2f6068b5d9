// A backend for the page's tests: the mask of a prompt is discs around its points, without those around background
// points.
import { encode } from '/page/formats/rle.js';
import { BackendError } from '/page/types.js';

const settings = Object.fromEntries(new URLSearchParams(location.search));
/** What tests set and read: delays in milliseconds, failures to come, and what was asked. */
export const control = {
  delay: Number(settings.delay ?? 0), random: Number(settings.random ?? 0), decoder: Number(settings.decoder ?? 20),
  fail: '', offline: false, failOpen: '', regions: Number(settings.regions ?? 3), local: false, calls: [],
  known: new Map(),
};
window.control = control;
const pause = (least = 0) => new Promise((resolve) => {
  setTimeout(resolve, least + control.delay + Math.random() * control.random);
});
const picture = (await (await fetch('/example.png')).blob());

async function about(name, key, signal, least) {
  control.calls.push(name);
  await pause(least);
  signal?.throwIfAborted();
  if (control.offline) throw new BackendError('The server does not answer.', { offline: true });
  if (key !== undefined && !control.known.has(key)) throw new BackendError('It is no longer known.', { gone: true });
  if (control.fail === name) throw new BackendError('The model is out of memory.');
  return control.known.get(key);
}

function discs(prompt, width, height, scale, radius) {
  const bits = new Uint8Array(width * height);
  const [x0, y0, x1, y1] = (prompt.box ?? [0, 0, 0, 0]).map((value) => value * scale);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let inside = prompt.box && x >= x0 + 2 && x < x1 - 2 && y >= y0 + 2 && y < y1 - 2;
      prompt.points.forEach(([px, py], index) => {
        if ((x - px * scale) ** 2 + (y - py * scale) ** 2 < (radius * scale) ** 2) inside = prompt.labels[index] === 1;
      });
      if (inside) bits[y * width + x] = 1;
    }
  }
  return encode(bits, width, height);
}

export class FakeBackend {
  async info() {
    return {
      model: 'toy', routed: true, keep_ratio: 0.5, min_keep_ratio: 0.05, max_bytes: 40 * 2 ** 20, max_side: 1280,
      examples: [{ name: 'example', title: 'Example', thumbnail: URL.createObjectURL(picture) }],
      everything: { points_per_side: 12, pred_iou_thresh: 0.7, stability_score_thresh: 0.85 }, version: '0',
      local: control.local, home: 'https://example.org/',
    };
  }

  async open(file, name) {
    await about('open');
    if (control.failOpen) throw new BackendError(control.failOpen);
    const bitmap = await createImageBitmap(file).catch(() => { throw new BackendError(name + ' is not an image.'); });
    const key = 'key-' + file.size;
    control.known.set(key, bitmap);
    return { key, name, width: bitmap.width, height: bitmap.height, note: '' };
  }

  async openExample() {
    return { photo: await this.open(picture, 'example.png'), blob: picture };
  }

  async preview() {
    return picture;
  }

  async encode(key, ratio, signal) {
    await about('encode', key, signal, Number(settings.encode ?? 0));
    const grid = document.createElement('canvas');
    Object.assign(grid, { width: 16, height: 16 }).getContext('2d').fillRect(0, 0, 8, 16);
    return {
      milliseconds: 120, keep_ratio: ratio, cached: false, gmacs: ratio === 'auto' ? 2 : 5.3 * ratio, dense_gmacs: 5.3,
      stages: [{
        layers: 'layers 1 to 6', share: ratio === 'auto' ? 0.4 : ratio, tokens: grid.toDataURL(), heat: grid.toDataURL(),
      }],
    };
  }

  async masks(key, ratio, prompt, signal) {
    const { width, height } = await about('masks', key, signal);
    const scale = Math.min(1, 1280 / Math.max(width, height));
    const w = Math.round(width * scale), h = Math.round(height * scale);
    control.last = { ratio, prompt };
    const masks = [24, 36, 12].map((radius) => discs(prompt, w, h, scale, radius * (ratio === 1 ? 1.05 : 1)));
    return { masks, ious: [0.91, 0.85, 0.72], milliseconds: control.decoder };
  }

  async fullMask(key, ratio, prompt, choice, signal) {
    const { width, height } = await about('fullMask', key, signal);
    return { mask: discs(prompt, width, height, 1, [24, 36, 12][choice]), iou: [0.91, 0.85, 0.72][choice] };
  }

  async everything(key, ratio, options, onProgress, signal) {
    const { width, height } = await about('everything', key, signal);
    const count = options.pred_iou_thresh > 0.8 ? 0 : control.regions;
    for (let step = 1; step <= 10; step++) {
      await pause(Number(settings.step ?? 10));
      signal.throwIfAborted();
      onProgress({ done: step / 10, found: Math.round(count * step / 10) });
    }
    return Array.from({ length: count }, (_, index) => {
      const point = [width * (index + 1) / (count + 1), height / 2];
      const mask = discs({ points: [point], labels: [1], box: null }, width, height, 1, 20);
      return { mask, iou: 0.9, stability: 0.95, point };
    });
  }
}
