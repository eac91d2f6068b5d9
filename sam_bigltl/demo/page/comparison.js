// The masks of the chosen keep_ratio beside those of the dense encoder.
import { channels } from './colours.js';
import { h } from './dom.js';
import { bitmapOf, iouOf, painted } from './masks.js';
import { hasPrompt } from './scene.js';

/** @typedef {import('./masks.js').Bitmap} Bitmap */

/** @param {import('./app.js').App} app */
export function makeComparison(app) {
  const { work, stage } = app;
  const [left, right] = [0, 1].map(() => ({ canvas: h('canvas', {}), caption: h('figcaption', {}) }));
  const element = h('section', { class: 'comparison', 'aria-label': 'Comparison with the dense encoder', hidden: true },
    h('figure', {}, left.canvas, left.caption), h('figure', {}, right.canvas, right.caption));
  /** @type {unknown[]} */
  let drawn = [];

  function update() {
    const { photo, scene, settings, encoding, dense } = work;
    const items = scene.objects.filter(hasPrompt);
    element.hidden = !photo || !settings.compare || !items.length;
    if (element.hidden || !photo) return;
    /** @type {{name: string, colour: string, ours: Bitmap, theirs: Bitmap}[]} */
    const pairs = [];
    for (const item of items) {
      const mask = work.shown(item, 1)?.mask, ours = work.bitmap(item);
      const theirs = mask ? bitmapOf({ ...item }, mask, photo, work.size) : null;
      if (ours && theirs) pairs.push({ name: item.name, colour: item.colour, ours, theirs });
    }
    const masks = items.flatMap((item) => [work.shown(item)?.mask, work.shown(item, 1)?.mask]);
    const now = [encoding, dense, stage.picture, ...masks];
    if (now.length === drawn.length && now.every((each, at) => each === drawn[at])) return;
    drawn = now;
    draw(left.canvas, pairs.map(({ ours, theirs }) => [ours, theirs]), '#ff3030');
    draw(right.canvas, pairs.map(({ ours, theirs }) => [theirs, ours]), '#3090ff');
    const took = (/** @type {import('./types.js').Encoding|null} */ each) =>
      each ? ', encoder ' + each.milliseconds.toFixed(0) + ' ms' : '';
    const each = pairs.map(({ name, ours, theirs }) => name + ' ' + iouOf(ours.bits, theirs.bits).toFixed(3));
    const same = each.length ? ' Overlap (IoU, 1 at best): ' + each.join(', ') + '.' : '';
    left.caption.textContent = 'keep_ratio ' + settings.keepRatio + took(encoding) + '. Red: only here.';
    right.caption.textContent = 'Dense' + took(dense) + '. Blue: only here.' + same;
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {[Bitmap, Bitmap][]} pairs   what is shown, and what it is compared with
   * @param {string} colour   of what only the first one has
   */
  function draw(canvas, pairs, colour) {
    const { size } = work, pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    Object.assign(canvas, size);
    if (stage.picture) pen.drawImage(stage.picture.small, 0, 0, size.width, size.height);
    for (const [shown, other] of pairs) {
      const only = { bits: shown.bits.map((bit, at) => bit & (1 - other.bits[at])), colour: channels(colour) };
      const layer = h('canvas', size);
      const image = painted(size, [{ bits: shown.bits, colour: [255, 255, 255], alpha: 120 }, only]);
      layer.getContext('2d')?.putImageData(image, 0, 0);
      pen.drawImage(layer, 0, 0);
    }
  }
  return { element, update };
}
