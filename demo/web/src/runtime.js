// The graphs in ONNX Runtime: on the processor by WebAssembly, with threads where the page is isolated, or on WebGPU.
import mjsUrl from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url';
import wasmUrl from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';
import gpuMjsUrl from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url';
import gpuWasmUrl from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url';

import { BackendError } from '../../../sam_bigltl/demo/page/types.js';

const MOST_THREADS = 8;

/** @typedef {typeof import('onnxruntime-web/wasm')} Ort */
/** @typedef {Record<string, {type: 'float32'|'int64', data: Float32Array|BigInt64Array, dims: number[]}>} Feeds */

export class Runtime {
  /**
   * @param {Ort} ort
   * @param {'wasm'|'webgpu'} provider
   * @param {string} folder   address of the models
   * @param {boolean} gpuFailed   whether WebGPU was tried before
   */
  constructor(ort, provider, folder, gpuFailed) {
    this.ort = ort;
    this.provider = provider;
    this.folder = folder;
    this.gpuFailed = gpuFailed;
    this.threads = ort.env.wasm.numThreads;
    /** @type {Map<string, Promise<import('onnxruntime-web/wasm').InferenceSession>>} */
    this.sessions = new Map();
    /** @type {Promise<Uint8Array>|null} */
    this.weights = null;
    /** @type {Promise<unknown>} */
    this.last = Promise.resolve();
  }

  /**
   * @param {string} folder
   * @param {'wasm'|'webgpu'} provider
   * @param {boolean} [gpuFailed]
   */
  static async start(folder, provider, gpuFailed = false) {
    const ort = provider === 'webgpu'
      ? /** @type {Ort} */ (/** @type {unknown} */ (await import('onnxruntime-web/webgpu')))
      : await import('onnxruntime-web/wasm');
    ort.env.wasm.wasmPaths = provider === 'webgpu' ? { mjs: absolute(gpuMjsUrl), wasm: absolute(gpuWasmUrl) }
      : { mjs: absolute(mjsUrl), wasm: absolute(wasmUrl) };
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
    ort.env.logLevel = 'error';
    return new Runtime(ort, provider, folder, gpuFailed);
  }

  /**
   * Get a graph ready, once.
   *
   * @param {string} name
   */
  session(name) {
    let session = this.sessions.get(name);
    if (!session) {
      session = this.load(name);
      this.sessions.set(name, session);
      session.catch(() => this.sessions.delete(name)); // another try may go better
    }
    return session;
  }

  /** @param {string} name */
  async load(name) {
    this.weights ??= fetchBytes(this.folder + 'weights.bin');
    this.weights.catch(() => { this.weights = null; });
    const [graph, weights] = await Promise.all([fetchBytes(this.folder + name + '.onnx'), this.weights]);
    return this.alone(() => this.ort.InferenceSession.create(graph, {
      executionProviders: this.provider === 'webgpu' ? ['webgpu', 'wasm'] : ['wasm'],
      externalData: [{ path: 'weights.bin', data: weights }],
      logSeverityLevel: 3,
    }));
  }

  /**
   * @param {string} name   of the graph
   * @param {Feeds} feeds
   * @returns {Promise<Record<string, Float32Array>>}   outputs, copied
   */
  async run(name, feeds) {
    const session = await this.session(name), { Tensor } = this.ort;
    const inputs = Object.fromEntries(Object.entries(feeds).map(
      ([input, { type, data, dims }]) => [input, new Tensor(type, /** @type {any} */ (data), dims)],
    ));
    const outputs = await this.alone(() => session.run(inputs));
    /** @type {Record<string, Float32Array>} */
    const found = {};
    for (const [output, tensor] of Object.entries(outputs)) {
      found[output] = /** @type {Float32Array} */ (tensor.data);
      if (!Number.isFinite(found[output][0])) throw new BackendError('The model computed no numbers: reload the page.');
    }
    return found;
  }

  /**
   * One after the other: ONNX Runtime does one thing at a time here.
   *
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  alone(work) {
    const done = this.last.then(work);
    this.last = done.catch(() => {});
    return done;
  }
}

/** @param {string} url */
function absolute(url) {
  return new URL(url, import.meta.url).href;
}

/**
 * @param {string} url
 * @returns {Promise<Uint8Array>}
 */
async function fetchBytes(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new BackendError('The model cannot be loaded: is this machine offline?', { offline: true });
  }
  if (!response.ok) throw new BackendError(`The model cannot be loaded: ${url} answers ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}
