// The stage: the canvas with the photograph and everything on it, and what pointers and keys do there.
import { Gestures } from './gestures.js';
import { hitOf } from './hits.js';
import { Layers } from './layers.js';
import { paint } from './paint.js';
import { Picture } from './picture.js';
import {
  activeOf, addPoint, addStroke, adoptRegions, deleteBox, deletePoint, movePoint, setBox,
} from './scene.js';
import { fit, onPhoto, pan, pinch, resized, toPhoto, toStage, zoomAt } from './view.js';
import { lineOf } from './work.js';

/**
 * @typedef {import('./types.js').Mode} Mode
 * @typedef {import('./types.js').Point} Point
 * @typedef {import('./types.js').Scene} Scene
 * @typedef {import('./gestures.js').Press} Press
 * @typedef {import('./hits.js').Hit} Hit
 * @typedef {{opacity: number, outline: boolean, overlay: ''|'tokens'|'heat', grid: ImageBitmap|null}} Look
 */

const NOWHERE = { width: 0, height: 0 };

export class Stage {
  /**
   * @param {HTMLElement} element
   * @param {HTMLCanvasElement} canvas   fills it
   * @param {import('./work.js').Work} work
   * @param {() => void} onChange   of the mode, the zoom or the selection
   */
  constructor(element, canvas, work, onChange) {
    this.element = element;
    this.canvas = canvas;
    this.pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    this.work = work;
    this.onChange = onChange;
    this.layers = new Layers();
    /** @type {Picture|null} */
    this.picture = null;
    this.serial = 0;
    this.loading = false;
    this.view = { scale: 1, left: 0, top: 0 };
    /** @type {{width: number, height: number}} */
    this.size = NOWHERE;
    /** @type {Look} */
    this.look = { opacity: 0.5, outline: false, overlay: '', grid: null };
    /** @type {Mode} */
    this.mode = 'object';
    this.radius = 12; // of the brush, CSS pixels
    this.space = false; // held: drags move the photograph
    /** @type {Point|null} */
    this.corner = null; // the first of a box
    /** @type {Point|null} */
    this.cursor = null; // of the keyboard
    /** @type {Press|null} */
    this.pointer = null;
    /** @type {Hit|null} */
    this.selected = null;
    /** @type {{kind: 'box'|'stroke'|'hit'|'pan', hit?: Hit, points: Point[], last: Press}|null} */
    this.drag = null;
    this.frame = 0;
    this.gestures = new Gestures({
      click: (press) => this.click(press), dragStart: (press) => this.dragStart(press),
      drag: (press) => this.dragTo(press), dragEnd: (press) => this.dragEnd(press),
      dragCancel: () => { this.drag = this.selected = null; this.draw(); },
      pan: (dx, dy) => this.setView(pan(this.view, dx, dy, this.photo, this.size)),
      pinch: (before, after) => this.setView(pinch(this.view, before, after, this.photo, this.size)),
      hover: (press) => this.hover(press),
    });
    new ResizeObserver(() => this.measure()).observe(element);
  }

  get photo() {
    return this.work.photo ?? NOWHERE;
  }

  // the photograph and the view

  /** The scene may have changed. */
  async update() {
    const { work } = this;
    if (work.serial !== this.serial && work.photo && work.blob) {
      const { photo, blob, serial } = work;
      this.serial = serial;
      this.corner = this.cursor = this.drag = this.selected = null;
      this.picture?.close();
      this.picture = null;
      this.element.style.setProperty('--aspect', String(photo.width / photo.height));
      this.size = NOWHERE;
      this.measure();
      this.loading = true;
      try {
        const preview = () => work.steady.run(() => work.backend.preview(work.key), work.life.signal);
        const picture = await Picture.open(blob, photo, preview);
        if (serial !== this.serial) picture.close();
        else this.picture = picture;
      } catch (error) {
        if (serial === this.serial) work.say('The photograph cannot be shown. ' + lineOf(error), true);
      }
      if (serial === this.serial) {
        this.loading = false;
        this.onChange(); // small pictures of it elsewhere on the page
      }
    }
    if (this.selected && !this.stillThere(this.selected)) this.selected = null;
    this.draw();
  }

  measure() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height || (width === this.size.width && height === this.size.height)) return;
    const before = this.size;
    this.size = { width, height };
    if (this.work.photo) {
      this.setView(before.width ? resized(this.view, this.photo, before, this.size) : fit(this.photo, this.size));
    }
  }

  /** @param {import('./view.js').View} view */
  setView(view) {
    if (!this.work.photo) return;
    this.view = view;
    this.onChange();
    this.draw();
  }

  /**
   * @param {number} factor
   * @param {number} [x]   of the stage: what is there stays there
   * @param {number} [y]
   */
  zoom(factor, x = this.size.width / 2, y = this.size.height / 2) {
    if (this.work.photo) this.setView(zoomAt(this.view, factor, x, y, this.photo, this.size));
  }

  fit() {
    if (this.work.photo) this.setView(fit(this.photo, this.size));
  }

  /** @param {Mode} mode */
  setMode(mode) {
    this.mode = mode;
    this.corner = null;
    this.work.hover.clear();
    this.onChange();
    this.draw();
  }

  // what pointers mean

  /** @param {{x: number, y: number}} press */
  at({ x, y }) {
    return onPhoto(this.photo, ...toPhoto(this.view, x, y));
  }

  /** @param {{x: number, y: number}} press */
  isInside({ x, y }) {
    const [px, py] = toPhoto(this.view, x, y);
    return px >= 0 && py >= 0 && px <= this.photo.width && py <= this.photo.height;
  }

  /** @param {{right: boolean, shift: boolean}} press */
  labelOf({ right, shift }) {
    const label = this.mode === 'background' ? 0 : 1;
    return /** @type {0|1} */ (right ? 0 : shift ? 1 - label : label);
  }

  /** @param {Press} press */
  click(press) {
    if (!this.work.photo) return;
    this.cursor = null;
    const hit = this.mode === 'object' || this.mode === 'background' || this.mode === 'box' ? this.hit(press) : null;
    if (hit && !this.corner) {
      this.selected = same(hit, this.selected) ? null : hit;
      this.onChange();
      return this.draw();
    }
    this.selected = null;
    if (this.isInside(press)) this.place(this.at(press), press);
    else this.draw();
  }

  /**
   * A click, or Enter at the keyboard's cursor.
   *
   * @param {Point} place
   * @param {{right: boolean, shift: boolean}} how
   */
  place(place, how) {
    const { work, mode } = this;
    if (mode === 'pick' && !how.right) {
      const index = this.layers.regionAt(work, ...place);
      if (index >= 0) work.act((scene) => adoptRegions(scene, [index]));
    } else if (mode === 'box' && !how.right) {
      const { corner } = this;
      this.corner = corner ? null : place;
      if (corner) work.act((scene) => setBox(scene, [...corner, ...place]));
    } else if (mode === 'add' || mode === 'erase') {
      this.stroke([place], how.right);
    } else if (mode !== 'move') {
      const label = this.labelOf(how);
      work.act((scene) => addPoint(scene, ...place, label));
    }
    this.draw();
  }

  /**
   * @param {Point[]} points
   * @param {boolean} other   with the right button: erase instead of add
   */
  stroke(points, other) {
    const erase = (this.mode === 'erase') !== other, radius = Math.round(100 * this.radius / this.view.scale) / 100;
    this.work.act((scene) => addStroke(scene, { erase, radius, points }));
  }

  /** @param {Press} press */
  dragStart(press) {
    if (!this.work.photo) return;
    const { mode } = this, brush = mode === 'add' || mode === 'erase';
    const hit = brush || mode === 'move' ? null : this.hit(press);
    /** @type {'box'|'stroke'|'hit'|'pan'} */
    const kind = hit ? 'hit' : brush ? 'stroke' : mode === 'move' || mode === 'pick' || press.right ? 'pan' : 'box';
    this.work.hover.clear();
    this.corner = null;
    this.drag = { kind, hit: hit ?? undefined, points: [this.at(press)], last: press };
    if (hit?.kind === 'point') this.selected = hit;
  }

  /** @param {Press} press */
  dragTo(press) {
    const { drag } = this;
    if (!drag) return;
    if (drag.kind === 'pan') {
      this.view = pan(this.view, press.x - drag.last.x, press.y - drag.last.y, this.photo, this.size);
      this.onChange();
    } else if (drag.kind === 'stroke') {
      if (Math.hypot(press.x - drag.last.x, press.y - drag.last.y) < 1) return; // no more points than can be seen
      drag.points.push(this.at(press));
    } else drag.points[1] = this.at(press);
    drag.last = this.pointer = press;
    this.draw();
  }

  /** @param {Press} press */
  dragEnd(press) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const first = drag.points[0], last = this.at(press);
    if (drag.kind === 'stroke') this.stroke(drag.points, press.right);
    if (drag.kind === 'box') this.work.act((scene) => setBox(scene, [...first, ...last]));
    if (drag.kind === 'hit') {
      this.selected = null;
      this.work.act((scene) => this.moved(scene, /** @type {Hit} */ (drag.hit), last));
    }
    this.draw();
  }

  /**
   * @param {Scene} scene
   * @param {Hit} hit
   * @param {Point} to
   */
  moved(scene, hit, to) {
    return hit.kind === 'point' ? movePoint(scene, hit.index, ...to) : setBox(scene, [...hit.opposite, ...to]);
  }

  /** @param {Press|null} press */
  hover(press) {
    this.pointer = press;
    const { work, mode } = this, points = mode === 'object' || mode === 'background';
    const hit = press && work.photo && (points || mode === 'box') ? this.hit(press) : null;
    this.canvas.style.cursor = cursorOf(mode, hit !== null, this.space);
    if (work.photo && press && points && !hit && this.isInside(press)) {
      const [x, y] = this.at(press);
      work.hover.at({ x, y, label: this.labelOf(press) });
    } else work.hover.clear();
    if (this.corner || mode === 'add' || mode === 'erase') this.draw();
  }

  /** @param {Press} press */
  hit(press) {
    return hitOf(this.view, activeOf(this.work.scene).prompt, press);
  }

  /** @param {Hit} hit */
  stillThere(hit) {
    const { points, box } = activeOf(this.work.scene).prompt;
    return hit.kind === 'point' ? hit.index < points.length : box !== null;
  }

  deleteSelected() {
    const { selected } = this;
    if (!selected) return;
    this.selected = null;
    this.work.act((scene) => (selected.kind === 'point' ? deletePoint(scene, selected.index) : deleteBox(scene)));
    this.onChange();
  }

  /** Where the button that deletes the selection belongs, in CSS pixels. */
  get selectionPlace() {
    const { selected } = this, { points, box } = activeOf(this.work.scene).prompt;
    if (!selected || !this.work.photo || !this.stillThere(selected)) return null;
    return selected.kind === 'point' ? toStage(this.view, ...points[selected.index])
      : toStage(this.view, box?.[2] ?? 0, box?.[1] ?? 0);
  }

  cancel() {
    this.gestures.cancel();
    this.corner = this.cursor = this.selected = this.drag = null;
    this.onChange();
    this.draw();
  }

  // the keyboard's cursor

  /**
   * @param {number} dx   CSS pixels
   * @param {number} dy
   */
  moveCursor(dx, dy) {
    if (!this.work.photo) return;
    const { width, height } = this.size;
    const from = this.cursor ?? this.at({ x: width / 2, y: height / 2 });
    const to = onPhoto(this.photo, from[0] + dx / this.view.scale, from[1] + dy / this.view.scale);
    this.cursor = to;
    const [x, y] = toStage(this.view, ...to), reach = (/** @type {number} */ at, /** @type {number} */ room) =>
      Math.min(0, at - 24) + Math.max(0, at - room + 24);
    this.view = pan(this.view, -reach(x, width), -reach(y, height), this.photo, this.size);
    this.draw();
  }

  /** @param {boolean} shift */
  enter(shift) {
    if (!this.work.photo) return;
    if (!this.cursor) this.moveCursor(0, 0);
    else this.place(this.cursor, { right: false, shift });
  }

  // drawing

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      paint(this);
    });
  }
}

/**
 * @param {Hit} a
 * @param {Hit|null} b
 */
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/**
 * @param {Mode} mode
 * @param {boolean} onHandle
 * @param {boolean} space
 */
function cursorOf(mode, onHandle, space) {
  if (space || mode === 'move') return 'grab';
  if (onHandle) return 'pointer';
  if (mode === 'add' || mode === 'erase') return 'none';
  return mode === 'pick' ? 'pointer' : 'crosshair';
}
