// The backend that is this browser: a worker with the model, so that the page stays quick.
import { BackendError } from '../../../sam_bigltl/demo/page/types.js';

/** @typedef {import('../../../sam_bigltl/demo/page/types.js').Backend} Backend */
/** @typedef {import('../../../sam_bigltl/demo/page/types.js').KeepRatio} KeepRatio */
/** @typedef {import('../../../sam_bigltl/demo/page/types.js').Prompt} Prompt */
/** @typedef {{provider: string, threads: number, gpuFailed: boolean}} Runs */
/** @typedef {(value: any) => void} Settle */
/** @typedef {{resolve: Settle, reject: Settle, progress?: Settle}} Waiting */

/** @implements {Backend} */
export class LocalBackend {
  /**
   * @param {string} home   address of the folder that holds `models` and `examples`
   * @param {import('./worker.js').Gpu} gpu   on what WebGPU may run
   */
  constructor(home, gpu) {
    this.home = home;
    this.gpu = gpu;
    /** @type {Map<number, Waiting>} */
    this.waiting = new Map();
    this.count = 0;
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.worker.onmessage = ({ data }) => this.settle(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = new BackendError('The model failed in this browser: reload the page.');
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
    /** @type {Promise<import('./engine.js').Model>|null} */
    this.model = null;
    /** @type {Promise<Runs>|null}   what runs the model */
    this.runs = null;
  }

  /** The model's description, and the worker started. */
  start() {
    this.model ??= this.load();
    this.model.catch(() => { this.model = null; }); // another try may go better
    return this.model;
  }

  /** @returns {Promise<import('./engine.js').Model>} */
  async load() {
    const folder = new URL('models/', this.home).href;
    const response = await fetch(folder + 'model.json').catch(() => null);
    if (!response?.ok) throw new BackendError('The model is not beside this page: models/model.json cannot be read.');
    const model = await response.json();
    this.runs = this.send('start', [{ folder, model, gpu: this.gpu }]);
    this.runs.catch(() => {}); // whoever calls next is told
    return model;
  }

  /** @returns {Promise<import('../../../sam_bigltl/demo/page/types.js').Info>} */
  async info() {
    const { info } = await this.start();
    return info;
  }

  /**
   * @param {Blob} file
   * @param {string} name
   */
  open(file, name) {
    return this.call('open', [file, name]);
  }

  /** @param {string} name */
  async openExample(name) {
    const { info } = await this.start();
    if (!info.examples.some((example) => example.name === name)) throw new BackendError(`There is no example ${name}.`);
    const response = await fetch(new URL(`examples/${encodeURIComponent(name)}.png`, this.home)).catch(() => null);
    if (!response?.ok) throw new BackendError('The example cannot be loaded: is this machine offline?');
    const blob = await response.blob();
    return { photo: await this.open(blob, name + '.png'), blob };
  }

  /** @param {string} key */
  preview(key) {
    return this.call('preview', [key]);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {AbortSignal} [signal]
   */
  encode(key, keepRatio, signal) {
    return this.call('encode', [key, keepRatio], signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {Prompt} prompt
   * @param {AbortSignal} [signal]
   */
  masks(key, keepRatio, prompt, signal) {
    return this.call('masks', [key, keepRatio, prompt], signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {Prompt} prompt
   * @param {number} choice
   * @param {AbortSignal} [signal]
   */
  fullMask(key, keepRatio, prompt, choice, signal) {
    return this.call('fullMask', [key, keepRatio, prompt, choice], signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {import('../../../sam_bigltl/demo/page/types.js').EverythingOptions} options
   * @param {(progress: {done: number, found: number}) => void} onProgress
   * @param {AbortSignal} [signal]
   */
  everything(key, keepRatio, options, onProgress, signal) {
    return this.call('everything', [key, keepRatio, options], signal, onProgress);
  }

  /**
   * @param {string} name
   * @param {unknown[]} args
   * @param {AbortSignal} [signal]
   * @param {Settle} [progress]
   */
  async call(name, args, signal, progress) {
    await this.start();
    return this.send(name, args, signal, progress);
  }

  /**
   * @param {string} call
   * @param {unknown[]} args
   * @param {AbortSignal} [signal]
   * @param {Settle} [progress]
   * @returns {Promise<any>}
   */
  send(call, args, signal, progress) {
    signal?.throwIfAborted();
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, progress });
      this.worker.postMessage({ id, call, args });
      signal?.addEventListener('abort', () => {
        this.worker.postMessage({ id, call: 'stop' });
        this.waiting.delete(id);
        reject(signal.reason);
      }, { once: true });
    });
  }

  /**
   * @param {{id: number, result?: unknown, progress?: unknown, error?: {message: string, gone: boolean,
   *   offline: boolean}}} answer
   */
  settle({ id, result, progress, error }) {
    const waiting = this.waiting.get(id);
    if (!waiting) return; // it was given up
    if (progress) {
      waiting.progress?.(progress);
      return;
    }
    this.waiting.delete(id);
    if (error) waiting.reject(new BackendError(error.message, error));
    else waiting.resolve(result);
  }
}
