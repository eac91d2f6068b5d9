// The masks of the scene as pictures, painted again only when they have changed.
import { channels, fromHue } from './colours.js';
import { drawLayer, drawOutline } from './draw.js';
import { areaOf } from './formats/rle.js';
import { bitmapOf, labelOutlines, labelsOf, outlineOf, painted } from './masks.js';
import { noPrompt } from './scene.js';

/**
 * @typedef {import('./masks.js').Bitmap} Bitmap
 * @typedef {import('./types.js').Rle} Rle
 * @typedef {import('./types.js').Region} Region
 * @typedef {import('./types.js').Item} Item
 * @typedef {import('./work.js').Work} Work
 */

export class Layers {
  constructor() {
    this.objects = document.createElement('canvas');
    this.regions = document.createElement('canvas');
    this.hover = document.createElement('canvas');
    /** @type {unknown[]} */
    this.painted = []; // what the picture of the objects was made from
    /** @type {Region[]|null} */
    this.found = null;
    /** @type {Uint16Array|null} */
    this.labels = null;
    /** @type {Path2D|null} */
    this.borders = null;
    /** @type {Rle|null} */
    this.hovered = null;
    /** @type {Bitmap|null} */
    this.hoverBitmap = null;
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {import('./view.js').View} view
   * @param {Work} work
   * @param {{opacity: number, outline: boolean}} look
   */
  draw(pen, view, work, { opacity, outline }) {
    const { photo, scene, size } = work;
    if (!photo) return;
    const scale = photo.width / size.width;
    if (scene.regions.length) {
      this.paintRegions(work);
      if (!outline) {
        pen.globalAlpha = opacity;
        drawLayer(pen, view, this.regions, photo);
        pen.globalAlpha = 1;
      }
      if (this.borders) drawOutline(pen, view, this.borders, scale, '#fff', 1.2, false);
    }
    /** @type {[Item, Bitmap][]} */
    const shown = [];
    for (const item of scene.objects) {
      const bitmap = work.bitmap(item);
      if (bitmap) shown.push([item, bitmap]);
    }
    if (!outline && shown.length) {
      this.paintObjects(shown, size);
      pen.globalAlpha = opacity;
      drawLayer(pen, view, this.objects, photo);
      pen.globalAlpha = 1;
    }
    for (const [item, bitmap] of shown) {
      drawOutline(pen, view, outlineOf(bitmap), scale, item.colour, item.id === scene.active ? 2 : 1.4);
    }
    this.drawHover(pen, view, work, scale);
  }

  /**
   * @param {[Item, Bitmap][]} shown
   * @param {{width: number, height: number}} size
   */
  paintObjects(shown, size) {
    const from = shown.flatMap(([item, bitmap]) => [bitmap, item.colour]);
    if (from.length === this.painted.length && from.every((part, at) => part === this.painted[at])) return;
    this.painted = from;
    put(this.objects, painted(size, shown.map(([{ colour }, { bits }]) => ({ bits, colour: channels(colour) }))));
  }

  /** @param {Work} work */
  paintRegions({ photo, scene, size }) {
    if (this.found === scene.regions || !photo) return;
    this.found = scene.regions;
    const masks = scene.regions.map(({ mask }) => mask);
    this.labels = labelsOf(masks.map(areaOf), (index) => plain(masks[index], photo, size).bits, size);
    this.borders = labelOutlines(this.labels, size);
    const hues = scene.regions.map((_, index) => channels(fromHue((index * 137.508) % 360, 0.5 + 0.1 * (index % 3))));
    const image = new ImageData(size.width, size.height);
    for (let at = 0; at < this.labels.length; at++) {
      if (this.labels[at]) image.data.set([...hues[this.labels[at] - 1], 255], 4 * at);
    }
    put(this.regions, image);
  }

  /**
   * The region at a place of the photograph, or -1.
   *
   * @param {Work} work
   * @param {number} x
   * @param {number} y
   */
  regionAt(work, x, y) {
    const { photo, size, scene } = work;
    if (!photo || !scene.regions.length) return -1;
    this.paintRegions(work);
    const column = Math.min(size.width - 1, Math.floor(x * size.width / photo.width));
    const row = Math.min(size.height - 1, Math.floor(y * size.height / photo.height));
    return (this.labels?.[row * size.width + column] ?? 0) - 1;
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {import('./view.js').View} view
   * @param {Work} work
   * @param {number} scale
   */
  drawHover(pen, view, work, scale) {
    const { mask } = work.hover, { photo, size } = work;
    if (!mask || !photo) return;
    if (mask !== this.hovered) {
      this.hovered = mask;
      this.hoverBitmap = plain(mask, photo, size);
      put(this.hover, painted(size, [{ bits: this.hoverBitmap.bits, colour: [255, 255, 255] }]));
    }
    pen.globalAlpha = 0.3;
    drawLayer(pen, view, this.hover, photo);
    pen.globalAlpha = 1;
    if (this.hoverBitmap) drawOutline(pen, view, outlineOf(this.hoverBitmap), scale, '#1f5fd6', 1.2);
  }
}

/**
 * A mask alone, as a bitmap of the shown size.
 *
 * @param {Rle} base
 * @param {import('./view.js').Size} photo
 * @param {import('./view.js').Size} size
 */
export function plain(base, photo, size) {
  const item = { id: 0, name: '', colour: '', prompt: noPrompt(), choice: null, strokes: [], base };
  return /** @type {Bitmap} */ (bitmapOf(item, null, photo, size));
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ImageData} image
 */
function put(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d')).putImageData(image, 0, 0);
}
