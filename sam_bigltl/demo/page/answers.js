// Masks by prompt. An answer belongs to its prompt, not to the moment at which it arrives; what nobody needs any more
// is aborted.

/**
 * @typedef {import('./types.js').Answer} Answer
 * @typedef {import('./types.js').KeepRatio} KeepRatio
 * @typedef {import('./types.js').Prompt} Prompt
 * @typedef {{keepRatio: KeepRatio, prompt: Prompt}} Question
 */

const KEPT = 500;
const AT_ONCE = 2;

/** @param {Question} question */
export const nameOf = ({ keepRatio, prompt }) => JSON.stringify([keepRatio, prompt.points, prompt.labels, prompt.box]);

export class Answers {
  /**
   * @param {(question: Question, signal: AbortSignal) => Promise<Answer>} ask
   * @param {() => void} onChange   an answer or a failure is there
   */
  constructor(ask, onChange) {
    this.ask = ask;
    this.onChange = onChange;
    /** @type {Map<string, Answer>} */
    this.known = new Map();
    /** @type {Map<string, AbortController>} */
    this.asked = new Map();
    /** @type {Map<string, Error>} */
    this.failed = new Map();
    /** @type {Question[]} */
    this.wanted = [];
  }

  /**
   * @param {Question} question
   * @returns {Answer|undefined}
   */
  get(question) {
    return this.known.get(nameOf(question));
  }

  /**
   * These questions are open now, the first of them the most urgent; others are not.
   *
   * @param {Question[]} questions
   */
  want(questions) {
    this.wanted = questions;
    const names = new Set(questions.map(nameOf));
    for (const [name, controller] of this.asked) {
      if (!names.has(name)) {
        controller.abort();
        this.asked.delete(name);
      }
    }
    for (const name of this.failed.keys()) if (!names.has(name)) this.failed.delete(name);
    this.start();
  }

  /** Whether something that is wanted is still to come. */
  get waiting() {
    return this.asked.size > 0;
  }

  /** Why a wanted question has no answer, if one has none. */
  get failure() {
    return this.failed.values().next().value ?? null;
  }

  /** Ask again what has failed. */
  retry() {
    this.failed.clear();
    this.start();
  }

  /** Forget everything: another photograph. */
  clear() {
    this.want([]);
    this.known.clear();
  }

  /**
   * An answer that came another way.
   *
   * @param {Question} question
   * @param {Answer} answer
   */
  keep(question, answer) {
    this.known.set(nameOf(question), answer);
    if (this.known.size > KEPT) this.known.delete(/** @type {string} */ (this.known.keys().next().value));
  }

  start() {
    for (const question of this.wanted) {
      const name = nameOf(question);
      if (this.known.has(name) || this.asked.has(name) || this.failed.has(name)) continue;
      if (this.asked.size >= AT_ONCE) return;
      const controller = new AbortController();
      this.asked.set(name, controller);
      this.ask(question, controller.signal).then((answer) => {
        this.keep(question, answer);
      }, (error) => {
        if (!controller.signal.aborted) this.failed.set(name, error);
      }).finally(() => {
        if (this.asked.get(name) !== controller) return; // nobody waits for it any more
        this.asked.delete(name);
        this.start();
        this.onChange();
      });
    }
  }
}
