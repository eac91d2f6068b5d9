// The backend that is the demo's server.
import { BackendError } from './types.js';

/**
 * @typedef {import('./types.js').KeepRatio} KeepRatio
 * @typedef {import('./types.js').Photo} Photo
 * @typedef {import('./types.js').Prompt} Prompt
 * @typedef {import('./types.js').Region} Region
 */

export class HttpBackend {
  /** @param {string|URL} [base]   where the routes are: by default beside the folder of this module */
  constructor(base = new URL('../', import.meta.url)) {
    this.base = String(base);
  }

  /** @returns {Promise<import('./types.js').Info>} */
  info() {
    return this.json('info');
  }

  /**
   * @param {Blob} file
   * @param {string} name
   * @returns {Promise<Photo>}
   */
  open(file, name) {
    return this.json('photos?name=' + encodeURIComponent(name), { method: 'POST', body: file });
  }

  /**
   * @param {string} name
   * @returns {Promise<{photo: Photo, blob: Blob}>}
   */
  async openExample(name) {
    const path = 'examples/' + encodeURIComponent(name);
    const [photo, blob] = await Promise.all([this.json(path, { method: 'POST' }), this.blob(path)]);
    return { photo, blob };
  }

  /** @param {string} key */
  preview(key) {
    return this.blob('photos/' + key + '/preview');
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {AbortSignal} [signal]
   */
  encode(key, keepRatio, signal) {
    return this.post('encode', { key, keep_ratio: keepRatio }, signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {Prompt} prompt
   * @param {AbortSignal} [signal]
   */
  masks(key, keepRatio, prompt, signal) {
    return this.post('masks', { key, keep_ratio: keepRatio, prompt }, signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {Prompt} prompt
   * @param {number} choice
   * @param {AbortSignal} [signal]
   */
  fullMask(key, keepRatio, prompt, choice, signal) {
    return this.post('full_mask', { key, keep_ratio: keepRatio, prompt, choice }, signal);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} keepRatio
   * @param {import('./types.js').EverythingOptions} options
   * @param {(progress: {done: number, found: number}) => void} onProgress
   * @param {AbortSignal} [signal]
   * @returns {Promise<Region[]>}
   */
  async everything(key, keepRatio, options, onProgress, signal) {
    const response = await this.fetch('everything', asJson({ key, keep_ratio: keepRatio, ...options }, signal));
    if (!response.body) throw new BackendError('The server sent no answer: try again.');
    for await (const line of lines(response.body)) {
      const news = JSON.parse(line);
      if (news.error) throw new BackendError(news.error);
      if (news.regions) return news.regions;
      onProgress(news);
    }
    throw new BackendError('The server broke off: start everything mode again.');
  }

  /**
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} [signal]
   */
  post(path, body, signal) {
    return this.json(path, asJson(body, signal));
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>}
   */
  async json(path, init) {
    return (await this.fetch(path, init)).json();
  }

  /** @param {string} path */
  async blob(path) {
    return (await this.fetch(path)).blob();
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   */
  async fetch(path, init) {
    let response;
    try {
      response = await fetch(new URL(path, this.base), { credentials: 'same-origin', ...init });
    } catch (error) {
      if (init?.signal?.aborted) throw error;
      throw new BackendError('The server does not answer.', { offline: true });
    }
    if (response.ok) return response;
    const { status } = response;
    const said = await response.json().catch(() => null);
    let message = typeof said?.error === 'string' ? said.error : 'The server failed (' + status + '): try again.';
    if (status === 401) message = 'The login has ended: reload the page and log in again.';
    throw new BackendError(message, { gone: status === 410, offline: status >= 502 && status <= 504 });
  }
}

/**
 * @param {object} body
 * @param {AbortSignal} [signal]
 * @returns {RequestInit}
 */
function asJson(body, signal) {
  return { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal };
}

/**
 * The lines of a stream of text.
 *
 * @param {ReadableStream<Uint8Array>} stream
 */
async function* lines(stream) {
  const reader = stream.getReader(), decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const parts = (rest + decoder.decode(value, { stream: !done })).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) if (part.trim()) yield part;
      if (done) break;
    }
    if (rest.trim()) yield rest;
  } finally {
    reader.cancel().catch(() => {}); // the server stops where nobody reads any more
  }
}
