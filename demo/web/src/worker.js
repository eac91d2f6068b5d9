// The worker: it answers what local_backend.js sends, one message an answer.
import { BackendError } from '../../../sam_bigltl/demo/page/types.js';
import { Engine } from './engine.js';
import { Runtime } from './runtime.js';

/** @typedef {'none'|'real'|'any'} Gpu   any: one that the processor simulates, too */

/** @type {Promise<Engine>|null} */
let engine = null;
const stopped = new Set();

/**
 * The engine on the GPU, where that is wanted, there, and computes what it should; else on the processor.
 *
 * @param {{folder: string, model: import('./engine.js').Model, gpu: Gpu}} given
 */
async function start({ folder, model, gpu }) {
  if (await hasGpu(gpu)) {
    try {
      const onGpu = new Engine(model, await Runtime.start(folder, 'webgpu'));
      if (await onGpu.computes()) return onGpu;
    } catch {
      // said with the answer of `start`
    }
    return new Engine(model, await Runtime.start(folder, 'wasm', true));
  }
  return new Engine(model, await Runtime.start(folder, 'wasm'));
}

/** @param {Gpu} wanted */
async function hasGpu(wanted) {
  if (wanted === 'none') return false;
  try {
    const adapter = await /** @type {any} */ (navigator).gpu?.requestAdapter();
    return Boolean(adapter) && (wanted === 'any' || !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter));
  } catch {
    return false;
  }
}

/** @param {MessageEvent} event */
self.onmessage = async ({ data: { id, call, args } }) => {
  if (call === 'stop') {
    stopped.add(id); // of everything mode; the rest is too short to stop
    return;
  }
  try {
    self.postMessage({ id, result: await answer(id, call, args) });
  } catch (error) {
    const known = error instanceof BackendError;
    const message = known ? error.message : 'The model failed in this browser: ' + oneLine(error);
    self.postMessage({ id, error: { message, gone: known && error.gone, offline: known && error.offline } });
  } finally {
    stopped.delete(id);
  }
};

/**
 * @param {number} id
 * @param {string} call
 * @param {any[]} args
 * @returns {Promise<unknown>}
 */
async function answer(id, call, args) {
  if (call === 'start') {
    engine = start(args[0]);
    const { runtime } = await engine;
    for (const graph of ['encoder', 'decoder']) runtime.session(graph).catch(() => {}); // said where it is needed
    return { provider: runtime.provider, threads: runtime.threads, gpuFailed: runtime.gpuFailed };
  }
  const ready = await engine;
  if (!ready) throw new BackendError('The model has not been started.');
  switch (call) {
    case 'open': return ready.open(args[0], args[1]);
    case 'preview': return ready.preview(args[0]);
    case 'encode': return ready.encode(args[0], args[1]);
    case 'masks': return ready.masks(args[0], args[1], args[2]);
    case 'fullMask': return ready.fullMask(args[0], args[1], args[2], args[3]);
    case 'everything': {
      const report = (/** @type {unknown} */ progress) => self.postMessage({ id, progress });
      return ready.everything(args[0], args[1], args[2], report, () => stopped.has(id));
    }
    default: throw new BackendError(`There is no call ${call}.`);
  }
}

/** @param {unknown} error */
function oneLine(error) {
  return String(error instanceof Error ? error.message : error).replace(/\s+/g, ' ').slice(0, 160);
}
