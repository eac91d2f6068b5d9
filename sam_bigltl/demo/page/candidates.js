// The three masks of the active object's prompt.
import { h } from './dom.js';
import { channels } from './colours.js';
import { boundsOf, painted } from './masks.js';
import { plain } from './layers.js';
import { activeOf, choose } from './scene.js';

const WIDTH = 112, HEIGHT = 84;

/** @param {import('./app.js').App} app */
export function makeCandidates(app) {
  const { work, stage } = app;
  const buttons = [0, 1, 2].map((index) => {
    const canvas = h('canvas', { width: 2 * WIDTH, height: 2 * HEIGHT }), iou = h('span', { class: 'iou' });
    const made = h('button', {
      type: 'button', role: 'radio',
      title: 'Mask ' + (index + 1) + ' (key ' + (index + 1) + '). IoU: how good the model expects it to be, 1 at best',
      onclick: () => work.act((scene) => choose(scene, /** @type {0|1|2} */ (index))),
    }, canvas, iou);
    return { made, canvas, iou };
  });
  const element = h('div', { class: 'candidates', role: 'radiogroup', 'aria-label': 'The three masks' },
    ...buttons.map(({ made }) => made));
  /** @type {unknown[]} */
  let drawn = [];

  function update() {
    const item = activeOf(work.scene), shown = work.photo ? work.shown(item) : null;
    element.classList.toggle('none', !shown);
    buttons.forEach(({ made, iou }, index) => {
      made.disabled = !shown;
      made.ariaChecked = String(shown?.index === index);
      made.tabIndex = shown?.index === index ? 0 : -1;
      made.ariaLabel = shown ? 'Mask ' + (index + 1) + ', IoU ' + shown.ious[index].toFixed(2) : 'Mask ' + (index + 1);
      iou.textContent = shown ? 'IoU ' + shown.ious[index].toFixed(3) : '';
    });
    const now = [shown?.masks, item.colour, stage.picture];
    if (now.every((each, at) => each === drawn[at])) return;
    drawn = now;
    draw(shown?.masks ?? null, item.colour);
  }

  /**
   * @param {import('./types.js').Rle[]|null} masks
   * @param {string} colour
   */
  function draw(masks, colour) {
    const { photo, size } = work, { picture } = stage;
    const bitmaps = masks && photo ? masks.map((mask) => plain(mask, photo, size)) : [];
    const around = frame(bitmaps.map((bitmap) => boundsOf(bitmap)), size);
    buttons.forEach(({ canvas }, index) => {
      const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d')), bitmap = bitmaps[index];
      pen.clearRect(0, 0, canvas.width, canvas.height);
      if (!bitmap || !photo) return;
      const scale = Math.min(canvas.width / around[2], canvas.height / around[3]);
      const left = (canvas.width - around[2] * scale) / 2 - around[0] * scale;
      const top = (canvas.height - around[3] * scale) / 2 - around[1] * scale;
      if (picture) pen.drawImage(picture.small, left, top, size.width * scale, size.height * scale);
      const layer = h('canvas', size);
      const image = painted(size, [{ bits: bitmap.bits, colour: channels(colour), alpha: 150 }]);
      layer.getContext('2d')?.putImageData(image, 0, 0);
      pen.drawImage(layer, left, top, size.width * scale, size.height * scale);
    });
  }

  element.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = buttons.findIndex(({ made }) => made.ariaChecked === 'true');
    if (!step || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = buttons[(at + step + 3) % 3].made;
    next.click();
    next.focus();
  };
  return { element, update };
}

/**
 * What the three small pictures show: all masks, and some room around them.
 *
 * @param {([number, number, number, number]|null)[]} bounds
 * @param {{width: number, height: number}} size
 * @returns {[number, number, number, number]}
 */
function frame(bounds, size) {
  const given = bounds.filter((each) => each !== null);
  if (!given.length) return [0, 0, size.width, size.height];
  const x0 = Math.min(...given.map(([x]) => x)), x1 = Math.max(...given.map(([x, , width]) => x + width));
  const y0 = Math.min(...given.map(([, y]) => y)), y1 = Math.max(...given.map(([, y, , height]) => y + height));
  const room = 0.15 * Math.max(x1 - x0, y1 - y0) + 4;
  const left = Math.max(0, x0 - room), top = Math.max(0, y0 - room);
  return [left, top, Math.min(size.width, x1 + room) - left, Math.min(size.height, y1 + room) - top];
}
