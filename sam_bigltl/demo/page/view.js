// Where the photograph lies on the stage: a point (x, y) of the photograph is at (x * scale + left, y * scale + top),
// in CSS pixels.

/** @typedef {{scale: number, left: number, top: number}} View */
/** @typedef {{width: number, height: number}} Size */

const MOST_SCALE = 32; // CSS pixels for a pixel of the photograph
const MARGIN = 8;

/**
 * The whole photograph in the middle of the stage.
 *
 * @param {Size} photo
 * @param {Size} stage
 * @returns {View}
 */
export function fit(photo, stage) {
  const margin = Math.min(MARGIN, stage.width / 20, stage.height / 20);
  const across = (stage.width - 2 * margin) / photo.width, down = (stage.height - 2 * margin) / photo.height;
  const scale = Math.min(across, down, MOST_SCALE);
  return centred({ scale: Math.max(scale, 1e-4), left: 0, top: 0 }, photo, stage);
}

/**
 * The least and the largest scale: from the whole photograph to its own pixels as large squares.
 *
 * @param {Size} photo
 * @param {Size} stage
 * @returns {[number, number]}
 */
export function limits(photo, stage) {
  const least = fit(photo, stage).scale;
  return [least, Math.max(MOST_SCALE, least)];
}

/**
 * `factor` times as large, with (x, y) of the stage where it is.
 *
 * @param {View} view
 * @param {number} factor
 * @param {number} x
 * @param {number} y
 * @param {Size} photo
 * @param {Size} stage
 */
export function zoomAt(view, factor, x, y, photo, stage) {
  const [least, most] = limits(photo, stage);
  const scale = Math.min(Math.max(view.scale * factor, least), most), ratio = scale / view.scale;
  return centred({ scale, left: x - (x - view.left) * ratio, top: y - (y - view.top) * ratio }, photo, stage);
}

/**
 * @param {View} view
 * @param {number} dx
 * @param {number} dy
 * @param {Size} photo
 * @param {Size} stage
 */
export function pan(view, dx, dy, photo, stage) {
  return centred({ ...view, left: view.left + dx, top: view.top + dy }, photo, stage);
}

/**
 * Two fingers that were at `before` are at `after`.
 *
 * @param {View} view
 * @param {[[number, number], [number, number]]} before
 * @param {[[number, number], [number, number]]} after
 * @param {Size} photo
 * @param {Size} stage
 */
export function pinch(view, before, after, photo, stage) {
  const apart = ([[x0, y0], [x1, y1]] = before) => Math.max(Math.hypot(x1 - x0, y1 - y0), 1);
  const middle = ([[x0, y0], [x1, y1]] = before) => [(x0 + x1) / 2, (y0 + y1) / 2];
  const [fromX, fromY] = middle(before), [toX, toY] = middle(after);
  const moved = { ...view, left: view.left + toX - fromX, top: view.top + toY - fromY };
  return zoomAt(moved, apart(after) / apart(before), toX, toY, photo, stage);
}

/**
 * The same middle on a stage of another size; what showed the whole photograph still does.
 *
 * @param {View} view
 * @param {Size} photo
 * @param {Size} before
 * @param {Size} stage
 */
export function resized(view, photo, before, stage) {
  if (isFit(view, photo, before)) return fit(photo, stage);
  const [x, y] = toPhoto(view, before.width / 2, before.height / 2);
  const moved = { ...view, left: stage.width / 2 - x * view.scale, top: stage.height / 2 - y * view.scale };
  return zoomAt(moved, 1, stage.width / 2, stage.height / 2, photo, stage);
}

/**
 * @param {View} view
 * @param {Size} photo
 * @param {Size} stage
 */
export const isFit = (view, photo, stage) => view.scale <= fit(photo, stage).scale * 1.001;

/**
 * @param {View} view
 * @param {number} x
 * @param {number} y
 * @returns {[number, number]}
 */
export const toPhoto = (view, x, y) => [(x - view.left) / view.scale, (y - view.top) / view.scale];

/**
 * @param {View} view
 * @param {number} x
 * @param {number} y
 * @returns {[number, number]}
 */
export const toStage = (view, x, y) => [x * view.scale + view.left, y * view.scale + view.top];

/**
 * Coordinates that lie on the photograph, with as many decimals as a finger on any zoom can tell apart.
 *
 * @param {Size} photo
 * @param {number} x
 * @param {number} y
 * @returns {[number, number]}
 */
export function onPhoto(photo, x, y) {
  const rounded = (/** @type {number} */ value, /** @type {number} */ most) =>
    Math.round(Math.min(Math.max(value, 0), most) * 100) / 100;
  return [rounded(x, photo.width), rounded(y, photo.height)];
}

/**
 * A photograph smaller than the stage lies in its middle; a larger one leaves no room at an edge.
 *
 * @param {View} view
 * @param {Size} photo
 * @param {Size} stage
 * @returns {View}
 */
function centred({ scale, left, top }, photo, stage) {
  const along = (/** @type {number} */ start, /** @type {number} */ length, /** @type {number} */ room) =>
    length <= room ? (room - length) / 2 : Math.min(MARGIN, Math.max(room - length - MARGIN, start));
  return {
    scale, left: along(left, photo.width * scale, stage.width), top: along(top, photo.height * scale, stage.height),
  };
}
