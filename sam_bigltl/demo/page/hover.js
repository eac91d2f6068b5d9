// The mask that a click would give, while the pointer only rests there.
import { activeOf } from './scene.js';

const PAUSE = 80; // milliseconds between two questions: ten a second, with what timers and answers add
// Milliseconds of the decoder, beyond which there is no preview: 35 to 60 beside a browser on two cores still give 11 a
// second there.
export const QUICK = 75;
const ENOUGH = 3; // answers from which it can be told: the first is slower than those after it
const KEPT_TIMES = 9;

/**
 * @typedef {import('./types.js').Rle} Rle
 * @typedef {import('./types.js').Prompt} Prompt
 */

export class Hover {
  /** @param {import('./work.js').Work} work */
  constructor(work) {
    this.work = work;
    /** @type {Rle|null} */
    this.mask = null;
    /** @type {number[]} */
    this.times = [];
    /** @type {{x: number, y: number, label: 0|1}|null} */
    this.place = null;
    this.busy = false;
    this.began = -Infinity;
    this.count = 0; // of previews shown
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.timer = undefined;
  }

  /** Whether the decoder is quick enough, as far as can be told: of few answers the quickest counts, and is let off. */
  get quick() {
    const sorted = [...this.times].sort((a, b) => a - b);
    if (sorted.length < ENOUGH) return !sorted.length || sorted[0] < 4 * QUICK;
    return sorted[Math.floor(sorted.length / 2)] < QUICK;
  }

  /** @param {number} milliseconds   that the decoder took */
  learn(milliseconds) {
    this.times = [...this.times, milliseconds].slice(-KEPT_TIMES);
  }

  /**
   * The pointer is there; null: nowhere.
   *
   * @param {{x: number, y: number, label: 0|1}|null} place
   */
  at(place) {
    this.place = place;
    if (!place) return this.clear();
    this.ask();
  }

  clear() {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.place = null;
    if (this.mask) {
      this.mask = null;
      this.work.onChange();
    }
  }

  ask() {
    const { work } = this;
    if (this.busy || this.timer !== undefined || !work.settings.preview || !this.quick || !work.encoding) return;
    if (work.answers.waiting || work.offline) return; // a click goes first
    const wait = this.began + PAUSE - performance.now();
    if (wait > 0) {
      this.timer = setTimeout(() => { this.timer = undefined; this.ask(); }, wait);
      return;
    }
    if (this.place) this.fetch(this.place);
  }

  /** @param {{x: number, y: number, label: 0|1}} place */
  async fetch(place) {
    const { work } = this, { keepRatio } = work.settings, { prompt } = activeOf(work.scene);
    const { key } = work;
    /** @type {Prompt} */
    const tried = {
      ...prompt, points: [...prompt.points, [place.x, place.y]], labels: [...prompt.labels, place.label],
    };
    this.busy = true;
    this.began = performance.now();
    try {
      const answer = await work.backend.masks(key, keepRatio, tried);
      this.learn(answer.milliseconds);
      if (key !== work.key || keepRatio !== work.settings.keepRatio) return;
      work.answers.keep({ keepRatio, prompt: tried }, answer);
      if (this.place && activeOf(work.scene).prompt === prompt) {
        this.mask = answer.masks[answer.ious.indexOf(Math.max(...answer.ious))];
        this.count++;
        work.onChange();
      }
    } catch { // a preview that fails is no loss
      this.mask = null;
    } finally {
      this.busy = false;
      if (this.place && (this.place.x !== place.x || this.place.y !== place.y)) this.ask();
    }
  }
}
