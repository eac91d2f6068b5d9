// What is drawn over the photograph. All functions draw in CSS pixels of the stage.
import { toStage } from './view.js';

/**
 * @typedef {import('./view.js').View} View
 * @typedef {import('./view.js').Size} Size
 * @typedef {import('./types.js').Box} Box
 * @typedef {import('./types.js').Stroke} Stroke
 * @typedef {CanvasRenderingContext2D} Pen
 */

const POSITIVE = '#1d9a3c', NEGATIVE = '#d62828';
export const POINT = 8; // radius of a point

/**
 * A picture that covers `covered` pixels of the photograph from its top left corner.
 *
 * @param {Pen} pen
 * @param {View} view
 * @param {CanvasImageSource & Size} source
 * @param {Size} covered
 * @param {boolean} [smooth]
 */
export function drawLayer(pen, view, source, covered, smooth = false) {
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(source, view.left, view.top, covered.width * view.scale, covered.height * view.scale);
  pen.imageSmoothingEnabled = true;
}

/**
 * @param {Pen} pen
 * @param {View} view
 * @param {Path2D} path   in pixels of a mask
 * @param {number} scale   pixels of the photograph for one of the mask
 * @param {string} colour
 * @param {number} width   CSS pixels
 * @param {boolean} [halo]   with white around it
 */
export function drawOutline(pen, view, path, scale, colour, width, halo = true) {
  const total = view.scale * scale;
  pen.save();
  pen.translate(view.left, view.top);
  pen.scale(total, total);
  pen.lineCap = 'square';
  if (halo) {
    pen.strokeStyle = 'rgba(255, 255, 255, .9)';
    pen.lineWidth = (width + 1.4) / total;
    pen.stroke(path);
  }
  pen.strokeStyle = colour;
  pen.lineWidth = width / total;
  pen.stroke(path);
  pen.restore();
}

/**
 * @param {Pen} pen
 * @param {View} view
 * @param {Box} box
 * @param {string} colour
 * @param {boolean} active   with handles at its corners
 */
export function drawBox(pen, view, box, colour, active) {
  const [x0, y0] = toStage(view, box[0], box[1]), [x1, y1] = toStage(view, box[2], box[3]);
  for (const [stroke, width] of /** @type {[string, number][]} */ ([['rgba(255, 255, 255, .9)', 4], [colour, 2]])) {
    pen.strokeStyle = stroke;
    pen.lineWidth = width;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  if (active) for (const [x, y] of [[x0, y0], [x1, y0], [x0, y1], [x1, y1]]) drawCorner(pen, x, y, colour);
}

/**
 * @param {Pen} pen
 * @param {number} x
 * @param {number} y
 * @param {string} colour
 */
export function drawCorner(pen, x, y, colour) {
  pen.fillStyle = '#fff';
  pen.fillRect(x - 5, y - 5, 10, 10);
  pen.fillStyle = colour;
  pen.fillRect(x - 3.5, y - 3.5, 7, 7);
}

/**
 * @param {Pen} pen
 * @param {View} view
 * @param {[number, number]} point
 * @param {0|1} label
 * @param {{faint: boolean, selected: boolean}} state   faint: of another object
 */
export function drawPoint(pen, view, point, label, { faint, selected }) {
  const [x, y] = toStage(view, ...point), radius = faint ? POINT * 0.6 : POINT, arm = radius * 0.5;
  pen.globalAlpha = faint ? 0.75 : 1;
  if (selected) {
    pen.beginPath();
    pen.arc(x, y, radius + 5, 0, 7);
    pen.strokeStyle = '#fff';
    pen.lineWidth = 5;
    pen.stroke();
    pen.strokeStyle = '#1f5fd6';
    pen.lineWidth = 2.5;
    pen.stroke();
  }
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fillStyle = label ? POSITIVE : NEGATIVE;
  pen.fill();
  pen.strokeStyle = '#fff';
  pen.lineWidth = 2;
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - arm, y);
  pen.lineTo(x + arm, y);
  if (label) {
    pen.moveTo(x, y - arm);
    pen.lineTo(x, y + arm);
  }
  pen.stroke();
  pen.globalAlpha = 1;
}

/**
 * The first corner of a box, until the second one comes.
 *
 * @param {Pen} pen
 * @param {View} view
 * @param {[number, number]} corner
 * @param {string} colour
 */
export function drawFirstCorner(pen, view, corner, colour) {
  const [x, y] = toStage(view, ...corner);
  for (const [stroke, width] of /** @type {[string, number][]} */ ([['#fff', 6], [colour, 3]])) {
    pen.beginPath();
    pen.moveTo(x - 13, y);
    pen.lineTo(x + 13, y);
    pen.moveTo(x, y - 13);
    pen.lineTo(x, y + 13);
    pen.strokeStyle = stroke;
    pen.lineWidth = width;
    pen.stroke();
  }
  drawCorner(pen, x, y, colour);
}

/**
 * @param {Pen} pen
 * @param {View} view
 * @param {Stroke} stroke
 * @param {string} colour
 */
export function drawStroke(pen, view, { erase, radius, points }, colour) {
  pen.save();
  pen.globalAlpha = 0.55;
  pen.lineCap = pen.lineJoin = 'round';
  pen.lineWidth = 2 * radius * view.scale;
  pen.strokeStyle = erase ? '#fff' : colour;
  pen.beginPath();
  for (const point of points) pen.lineTo(...toStage(view, ...point));
  if (points.length === 1) pen.lineTo(...toStage(view, points[0][0] + 0.001, points[0][1]));
  pen.stroke();
  pen.restore();
}

/**
 * @param {Pen} pen
 * @param {number} x
 * @param {number} y
 * @param {number} radius   CSS pixels
 */
export function drawBrush(pen, x, y, radius) {
  for (const [stroke, width] of /** @type {[string, number][]} */ ([['#000', 3], ['#fff', 1.5]])) {
    pen.beginPath();
    pen.arc(x, y, Math.max(radius, 1), 0, 7);
    pen.strokeStyle = stroke;
    pen.lineWidth = width;
    pen.stroke();
  }
}

/**
 * The cursor that arrow keys move.
 *
 * @param {Pen} pen
 * @param {View} view
 * @param {[number, number]} place
 */
export function drawCursor(pen, view, place) {
  const [x, y] = toStage(view, ...place);
  for (const [stroke, width] of /** @type {[string, number][]} */ ([['#000', 5], ['#fff', 2.5]])) {
    pen.strokeStyle = stroke;
    pen.lineWidth = width;
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 18 * dx, y + 18 * dy);
    }
    pen.stroke();
  }
}

/**
 * What the encoder did: its big tokens, or the importance of all. A token is a square of the square that SAM pads to.
 *
 * @param {Pen} pen
 * @param {View} view
 * @param {Size} photo
 * @param {ImageBitmap|HTMLImageElement} grid
 * @param {'tokens'|'heat'} kind
 */
export function drawTokens(pen, view, photo, grid, kind) {
  const side = Math.max(photo.width, photo.height);
  pen.save();
  pen.beginPath();
  pen.rect(view.left, view.top, photo.width * view.scale, photo.height * view.scale);
  pen.clip();
  pen.globalAlpha = kind === 'heat' ? 0.6 : 0.72;
  drawLayer(pen, view, kind === 'heat' ? grid : dark(grid), { width: side, height: side });
  pen.restore();
}

/** @type {WeakMap<object, HTMLCanvasElement>} */
const darkened = new WeakMap();

/**
 * The picture of the tokens that stayed little, dark where it is white.
 *
 * @param {ImageBitmap|HTMLImageElement} grid
 */
function dark(grid) {
  let canvas = darkened.get(grid);
  if (!canvas) {
    canvas = Object.assign(document.createElement('canvas'), { width: grid.width, height: grid.height });
    const pen = /** @type {Pen} */ (canvas.getContext('2d'));
    pen.drawImage(grid, 0, 0);
    pen.globalCompositeOperation = 'source-in';
    pen.fillStyle = '#101018';
    pen.fillRect(0, 0, grid.width, grid.height);
    darkened.set(grid, canvas);
  }
  return canvas;
}
