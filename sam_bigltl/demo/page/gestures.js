// What pointers on the stage mean: clicks, drags, panning and pinching. Knows nothing of photographs; x and y are CSS
// pixels of the stage.

/** @typedef {{id: number, type: string, button: number, x: number, y: number, shift: boolean, pan: boolean}} Pointer */
/** @typedef {{x: number, y: number, touch: boolean, right: boolean, shift: boolean}} Press   right: the button */
/**
 * @typedef {object} Meanings
 * @property {(press: Press) => void} click
 * @property {(press: Press) => void} dragStart   at the place where the pointer went down
 * @property {(press: Press) => void} drag
 * @property {(press: Press) => void} dragEnd
 * @property {() => void} dragCancel
 * @property {(dx: number, dy: number) => void} pan
 * @property {(before: [[number, number], [number, number]], after: [[number, number], [number, number]]) => void} pinch
 * @property {(press: Press|null) => void} hover   null: the pointer has left
 */

/** How far a pointer moves before its press is a drag: a finger trembles more than a mouse. */
export const DRAG = { mouse: 5, pen: 9, touch: 18 };

export class Gestures {
  /** @param {Meanings} meanings */
  constructor(meanings) {
    this.meanings = meanings;
    /** @type {Map<number, Pointer>} */
    this.down = new Map();
    /** @type {Pointer|null} */
    this.pressed = null;
    /** @type {'press'|'drag'|'pan'|'pinch'|null} */
    this.state = null;
  }

  /** @param {Pointer} pointer */
  press(pointer) {
    if (pointer.type === 'touch' ? this.down.size >= 2 : this.down.size) return; // a third finger, or a second button
    if (pointer.button > 2) return;
    this.down.set(pointer.id, pointer);
    if (this.down.size === 2) {
      if (this.state === 'drag') this.meanings.dragCancel();
      this.state = 'pinch';
      this.pressed = null;
    } else {
      this.pressed = pointer;
      this.state = pointer.pan || pointer.button === 1 ? 'pan' : 'press';
    }
  }

  /** @param {Pointer} pointer */
  move(pointer) {
    const last = this.down.get(pointer.id);
    if (!last) {
      if (!this.down.size && pointer.type !== 'touch') this.meanings.hover(press(pointer, pointer));
      return;
    }
    const before = [...this.down.values()];
    this.down.set(pointer.id, { ...last, x: pointer.x, y: pointer.y });
    if (this.state === 'pinch') {
      const after = [...this.down.values()];
      if (after.length === 2) this.meanings.pinch(pair(before), pair(after));
    } else if (this.state === 'pan') {
      this.meanings.pan(pointer.x - last.x, pointer.y - last.y);
    } else if (this.pressed) {
      const far = Math.hypot(pointer.x - this.pressed.x, pointer.y - this.pressed.y);
      const most = DRAG[/** @type {keyof typeof DRAG} */ (pointer.type)] ?? DRAG.mouse;
      if (this.state === 'press' && far > most) {
        this.state = 'drag';
        this.meanings.dragStart(press(this.pressed, this.pressed));
      }
      if (this.state === 'drag') this.meanings.drag(press(this.pressed, pointer));
    }
  }

  /** @param {Pointer} pointer */
  release(pointer) {
    if (!this.down.delete(pointer.id)) return;
    const { state, pressed } = this;
    if (this.down.size) return; // one finger of a pinch is still down, and means nothing any more
    this.state = this.pressed = null;
    if (!pressed) return;
    if (state === 'press') this.meanings.click(press(pressed, pressed)); // where it went down: it may tremble
    if (state === 'drag') this.meanings.dragEnd(press(pressed, pointer));
  }

  /** The browser has taken the pointers away, or Esc was pressed. */
  cancel() {
    if (this.state === 'drag') this.meanings.dragCancel();
    this.down.clear();
    this.state = this.pressed = null;
  }
}

/**
 * @param {Pointer} first   as it went down
 * @param {Pointer} now
 * @returns {Press}
 */
function press(first, now) {
  return { x: now.x, y: now.y, touch: first.type === 'touch', right: first.button === 2, shift: first.shift };
}

/**
 * @param {Pointer[]} pointers
 * @returns {[[number, number], [number, number]]}
 */
function pair([a, b]) {
  return [[a.x, a.y], [b.x, b.y]];
}
