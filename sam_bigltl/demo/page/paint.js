// All that the stage shows, drawn anew.
import { drawBox, drawBrush, drawCursor, drawFirstCorner, drawPoint, drawStroke, drawTokens } from './draw.js';
import { activeOf } from './scene.js';

/**
 * @typedef {import('./stage.js').Stage} Stage
 * @typedef {import('./types.js').Scene} Scene
 */

/** @param {Stage} stage */
export function paint(stage) {
  const { pen, canvas, view, size, work, look } = stage, density = window.devicePixelRatio || 1;
  const width = Math.round(size.width * density), height = Math.round(size.height * density);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, size.width, size.height);
  if (!work.photo) return;
  stage.picture?.draw(pen, view, size, density);
  if (look.overlay && look.grid) drawTokens(pen, view, work.photo, look.grid, look.overlay);
  stage.layers.draw(pen, view, work, look);
  drawPrompts(stage, sceneOf(stage));
  drawUnfinished(stage);
  stage.element.dataset.view = JSON.stringify(view); // for scripts that point at pixels of the photograph
}

/**
 * @param {Stage} stage
 * @param {Scene} scene
 */
function drawPrompts({ pen, view, selected }, scene) {
  for (const item of scene.objects) {
    const active = item.id === scene.active, { points, labels, box } = item.prompt;
    if (box) drawBox(pen, view, box, item.colour, active);
    points.forEach((point, index) => drawPoint(pen, view, point, labels[index], {
      faint: !active, selected: active && selected?.kind === 'point' && selected.index === index,
    }));
  }
}

/**
 * A box, a stroke and cursors, as long as they are under way.
 *
 * @param {Stage} stage
 */
function drawUnfinished(stage) {
  const { pen, view, drag, corner, cursor, pointer, mode, radius } = stage, { colour } = activeOf(stage.work.scene);
  const brush = mode === 'add' || mode === 'erase';
  if (drag?.kind === 'box' && drag.points[1]) drawBox(pen, view, [...drag.points[0], ...drag.points[1]], colour, true);
  if (drag?.kind === 'stroke') {
    drawStroke(pen, view, { erase: mode === 'erase', radius: radius / view.scale, points: drag.points }, colour);
  }
  if (corner) {
    const to = cursor ?? (pointer && !pointer.touch ? stage.at(pointer) : null);
    if (to) drawBox(pen, view, [...corner, ...to], colour, false);
    drawFirstCorner(pen, view, corner, colour);
  }
  if (cursor) drawCursor(pen, view, cursor);
  if (brush && pointer && !pointer.touch) drawBrush(pen, pointer.x, pointer.y, radius);
}

/**
 * The scene as it would be if a dragged point were let go; as it is where that is impossible.
 *
 * @param {Stage} stage
 */
function sceneOf({ drag, work, moved }) {
  if (drag?.kind !== 'hit' || !drag.hit || !drag.points[1]) return work.scene;
  try {
    return moved(work.scene, drag.hit, drag.points[1]);
  } catch {
    return work.scene;
  }
}
