// One user's work: the photograph, the scene and what the backend has answered. No part of it knows the page.
import { Answers } from './answers.js';
import { Hover } from './hover.js';
import { activeOf, emptyScene, hasPrompt, newHistory, redo, select, setRegions, undo, withStep } from './scene.js';
import { bitmapOf, shownSize } from './masks.js';
import { Steady } from './steady.js';
import { InputError } from './types.js';

/**
 * @typedef {import('./types.js').Backend} Backend
 * @typedef {import('./types.js').Encoding} Encoding
 * @typedef {import('./types.js').Info} Info
 * @typedef {import('./types.js').Item} Item
 * @typedef {import('./types.js').KeepRatio} KeepRatio
 * @typedef {import('./types.js').Photo} Photo
 * @typedef {import('./types.js').Rle} Rle
 * @typedef {import('./types.js').Scene} Scene
 * @typedef {{text: string, error: boolean, retry?: () => void}} Notice
 * @typedef {{mask: Rle, ious: number[], masks: Rle[], index: number, fresh: boolean}} Shown
 * @typedef {{keepRatio: KeepRatio, compare: boolean, preview: boolean}} Settings
 */

export class Work {
  /**
   * @param {Backend} backend
   * @param {Info} info
   * @param {import('./session.js').Session} session
   * @param {() => void} onChange
   */
  constructor(backend, info, session, onChange) {
    this.backend = backend;
    this.info = info;
    this.session = session;
    this.onChange = onChange;
    /** @type {Photo|null} */
    this.photo = null;
    /** @type {Blob|null} */
    this.blob = null;
    this.history = newHistory();
    /** @type {Settings} */
    this.settings = { keepRatio: info.keep_ratio, compare: false, preview: true };
    /** @type {Encoding|null} */
    this.encoding = null;
    /** @type {Encoding|null} */
    this.dense = null;
    /** @type {Notice|null} */
    this.notice = null;
    /** @type {string|null} */
    this.opening = null; // what is on its way
    this.encodingNow = false;
    this.comparing = false;
    this.offline = false;
    /** @type {{done: number, found: number}|null} */
    this.progress = null; // of everything mode
    /** @type {AbortController|null} */
    this.stopper = null;
    this.life = new AbortController(); // of all calls about the present photograph
    this.openings = 0;
    this.serial = 0; // of photographs that were opened
    /** @type {Map<number, Shown>} */
    this.last = new Map();
    this.steady = new Steady(() => this.resend(), (offline) => {
      this.offline = offline;
      this.onChange();
    });
    this.answers = new Answers(
      ({ keepRatio, prompt }, signal) => this.masks(keepRatio, prompt, signal),
      () => this.answered(),
    );
    this.hover = new Hover(this);
  }

  get key() {
    return this.photo?.key ?? '';
  }

  get scene() {
    return this.history.present;
  }

  /** The size at which masks are shown. */
  get size() {
    return this.photo ? shownSize(this.photo, this.info.max_side) : { width: 1, height: 1 };
  }

  // photographs

  /**
   * @param {Blob} file
   * @param {string} name
   */
  open(file, name) {
    if (file.size > this.info.max_bytes) {
      const most = Math.floor(this.info.max_bytes / 2 ** 20);
      this.say(name + ' is too large: a file can have ' + most + ' MB at most.', true);
      return Promise.resolve(false);
    }
    return this.opened(name, async () => ({ photo: await this.backend.open(file, name), blob: file }));
  }

  /** @param {import('./types.js').Example} example */
  openExample(example) {
    return this.opened(example.title, () => this.backend.openExample(example.name));
  }

  /**
   * @param {string} name
   * @param {() => Promise<{photo: Photo, blob: Blob}>} call
   */
  async opened(name, call) {
    const turn = ++this.openings;
    this.opening = name;
    this.say('');
    try {
      const { photo, blob } = await call();
      if (turn !== this.openings) return false; // another one was opened since
      this.show(photo, blob, newHistory());
      this.session.begin(this.saved(), blob);
      return true;
    } catch (error) {
      const again = () => { this.opened(name, call); };
      if (turn === this.openings) this.say(name + ' was not opened. ' + lineOf(error), true, again);
      return false;
    } finally {
      if (turn === this.openings) this.opening = null;
      this.onChange();
    }
  }

  /** @param {{photo: Photo, blob: Blob, history: import('./types.js').History, settings: object}} saved */
  restore({ photo, blob, history, settings }) {
    this.settings = { ...this.settings, ...settings };
    this.show(photo, blob, history);
  }

  /**
   * @param {Photo} photo
   * @param {Blob} blob
   * @param {import('./types.js').History} history
   */
  show(photo, blob, history) {
    this.life.abort();
    this.stopper?.abort();
    this.life = new AbortController();
    this.answers.clear();
    this.hover.clear();
    this.last.clear();
    this.encoding = this.dense = null;
    this.serial++;
    Object.assign(this, { photo, blob, history });
    this.encode();
    this.refresh();
  }

  /** The backend has forgotten the photograph: it gets it again, under the same key. */
  async resend() {
    if (!this.blob || !this.photo) return;
    const { photo } = this, again = await this.backend.open(this.blob, photo.name);
    if (again.key === photo.key || this.photo !== photo) return;
    this.photo = { ...photo, key: again.key };
    this.session.begin(this.saved(), this.blob);
  }

  /** @param {KeepRatio} keepRatio */
  setKeepRatio(keepRatio) {
    if (keepRatio === this.settings.keepRatio) return;
    this.settings = { ...this.settings, keepRatio };
    this.hover.clear();
    if (this.photo) this.encode();
    this.refresh();
  }

  /** @param {Partial<Settings>} settings */
  set(settings) {
    this.settings = { ...this.settings, ...settings };
    this.refresh();
  }

  async encode() {
    const { keepRatio } = this.settings, { signal } = this.life;
    const wanted = () => !signal.aborted && keepRatio === this.settings.keepRatio;
    this.encodingNow = true;
    try {
      const found = await this.steady.run(() => this.backend.encode(this.key, keepRatio, signal), signal);
      if (wanted()) this.encoding = found;
    } catch (error) {
      if (wanted()) this.say('The photograph was not encoded. ' + lineOf(error), true, () => this.encode());
    } finally {
      if (wanted()) this.encodingNow = false;
      this.onChange();
    }
  }

  // the scene

  /**
   * Something is done to the scene, at once.
   *
   * @param {(scene: Scene) => Scene} change
   */
  act(change) {
    if (!this.photo) return;
    try {
      this.history = withStep(this.history, change(this.scene));
      this.notice = null;
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      this.notice = { text: error.message, error: true };
    }
    this.refresh();
  }

  undo() {
    this.history = undo(this.history);
    this.refresh();
  }

  redo() {
    this.history = redo(this.history);
    this.refresh();
  }

  clear() {
    this.act(() => emptyScene());
    this.say('Everything was cleared. Undo brings it back.');
  }

  /** @param {number} id */
  select(id) {
    if (id === this.scene.active) return;
    this.history = select(this.history, id);
    this.refresh();
  }

  /** What the scene and the settings need is asked for, and the session is kept. */
  refresh() {
    if (this.photo) {
      const { keepRatio } = this.settings, active = activeOf(this.scene);
      const items = [active, ...this.scene.objects.filter((item) => item !== active)].filter(hasPrompt);
      const questions = items.map(({ prompt }) => ({ keepRatio, prompt }));
      if (this.settings.compare) {
        for (const { prompt } of items) questions.push({ keepRatio: 1, prompt });
        if (items.length && !this.dense) this.compare();
      }
      const ids = new Set(this.scene.objects.map(({ id }) => id));
      for (const id of this.last.keys()) if (!ids.has(id)) this.last.delete(id);
      this.answers.want(questions);
      this.session.save(this.saved());
    }
    this.onChange();
  }

  /**
   * @param {KeepRatio} keepRatio
   * @param {import('./types.js').Prompt} prompt
   * @param {AbortSignal} signal
   */
  async masks(keepRatio, prompt, signal) {
    const answer = await this.steady.run(() => this.backend.masks(this.key, keepRatio, prompt, signal), signal);
    this.hover.learn(answer.milliseconds);
    return answer;
  }

  answered() {
    const { failure } = this.answers;
    for (const item of this.scene.objects) this.shown(item); // remembered, for as long as the next answer takes
    if (failure) this.notice = { text: 'No mask came. ' + lineOf(failure), error: true, retry: () => this.retry() };
    this.onChange();
  }

  retry() {
    this.notice = null;
    this.answers.retry();
    this.onChange();
  }

  saved() {
    return { photo: /** @type {Photo} */ (this.photo), history: this.history, settings: this.settings };
  }

  // masks

  /**
   * The masks of an object's prompt: those of a moment ago until the new ones are there.
   *
   * @param {Item} item
   * @param {KeepRatio} [keepRatio]
   * @returns {Shown|null}
   */
  shown(item, keepRatio = this.settings.keepRatio) {
    if (!hasPrompt(item)) return null;
    const answer = this.answers.get({ keepRatio, prompt: item.prompt });
    if (!answer) return keepRatio === this.settings.keepRatio ? this.last.get(item.id) ?? null : null;
    const index = item.choice ?? best(answer.ious);
    const shown = { mask: answer.masks[index], masks: answer.masks, ious: answer.ious, index, fresh: true };
    if (keepRatio === this.settings.keepRatio) this.last.set(item.id, { ...shown, fresh: false });
    return shown;
  }

  /**
   * @param {Item} item
   * @param {KeepRatio} [keepRatio]
   */
  bitmap(item, keepRatio) {
    if (!this.photo) return null;
    return bitmapOf(item, this.shown(item, keepRatio)?.mask ?? null, this.photo, this.size);
  }

  /** The decoder's milliseconds for the active object, once they are known. */
  get milliseconds() {
    const { keepRatio } = this.settings, { prompt } = activeOf(this.scene);
    return this.answers.get({ keepRatio, prompt })?.milliseconds ?? null;
  }

  /** How long the dense encoder takes, for the comparison. */
  async compare() {
    if (this.comparing) return;
    const { signal } = this.life;
    this.comparing = true;
    try {
      this.dense = await this.steady.run(() => this.backend.encode(this.key, 1, signal), signal);
    } catch (error) {
      if (!signal.aborted) this.say('There is no comparison. ' + lineOf(error), true);
    } finally {
      this.comparing = false;
      this.onChange();
    }
  }

  // everything mode

  /** @param {import('./types.js').EverythingOptions} options */
  async everything(options) {
    const { keepRatio } = this.settings, { signal: life } = this.life;
    const stopper = this.stopper = new AbortController();
    this.progress = { done: 0, found: 0 };
    this.say('');
    try {
      const call = () => this.backend.everything(this.key, keepRatio, options, (progress) => {
        if (this.stopper === stopper) this.progress = progress;
        this.onChange();
      }, stopper.signal);
      const regions = await this.steady.run(call, stopper.signal);
      if (stopper.signal.aborted || life.aborted) return;
      this.act((scene) => setRegions(scene, regions));
      const { length } = regions;
      this.say(length ? length + (length === 1 ? ' region' : ' regions') + ' found.' : nothingFound(options), !length);
    } catch (error) {
      if (life.aborted) return;
      if (stopper.signal.aborted) this.say('Everything mode was stopped: nothing was changed.');
      else this.say('Everything mode failed. ' + lineOf(error), true);
    } finally {
      if (this.stopper === stopper) this.stopper = this.progress = null;
      this.onChange();
    }
  }

  stop() {
    this.stopper?.abort();
  }

  /**
   * @param {string} text   one line; none takes the last one away
   * @param {boolean} [error]
   * @param {() => void} [retry]
   */
  say(text, error = false, retry) {
    this.notice = text ? { text, error, retry } : null;
    this.onChange();
  }
}

/** @param {number[]} ious */
export const best = (ious) => ious.indexOf(Math.max(...ious));

/** @param {unknown} error */
export const lineOf = (error) => (error instanceof Error ? error.message : String(error)).split('\n')[0];

/** @param {import('./types.js').EverythingOptions} options */
function nothingFound({ pred_iou_thresh: iou, stability_score_thresh: stability }) {
  const lower = (/** @type {number} */ value) => Math.max(0, value - 0.2).toFixed(2);
  return 'Nothing was found. Lower the least predicted IoU (' + iou.toFixed(2) + ') to ' + lower(iou)
    + ', or the least stability (' + stability.toFixed(2) + ') to ' + lower(stability) + '.';
}
