// What the page, its backends and its formats say to each other. Coordinates everywhere are pixels of the upright
// original photograph, floats; the corner of the top left pixel is (0, 0).

/** @typedef {[number, number]} Point */
/** @typedef {[number, number, number, number]} Box   x0, y0, x1, y1 */
/** @typedef {number|'auto'} KeepRatio */
/** @typedef {{points: Point[], labels: (0|1)[], box: Box|null}} Prompt */
/** @typedef {{width: number, height: number, counts: string}} Rle   COCO's compressed RLE, column by column */
/** @typedef {{key: string, name: string, width: number, height: number, note: string}} Photo */
/** @typedef {{layers: string, share: number, tokens: string, heat: string|null}} Stage   tokens, heat: PNG data URLs */
/**
 * @typedef {{milliseconds: number, keep_ratio: KeepRatio, cached: boolean, gmacs: number, dense_gmacs: number,
 *   stages: Stage[]}} Encoding
 */
/** @typedef {{masks: Rle[], ious: number[], milliseconds: number}} Answer   three masks at the view's size */
/** @typedef {{mask: Rle, iou: number}} FullMask   at the original's size */
/** @typedef {{mask: Rle, iou: number, stability: number, point: Point}} Region */
/** @typedef {{points_per_side: number, pred_iou_thresh: number, stability_score_thresh: number}} EverythingOptions */
/** @typedef {{name: string, title: string, thumbnail: string}} Example */
/**
 * @typedef {{model: string, routed: boolean, keep_ratio: KeepRatio, min_keep_ratio: number, max_bytes: number,
 *   max_side: number, examples: Example[], everything: EverythingOptions, version: string, local: boolean,
 *   home: string}} Info
 */

/**
 * What computes: the demo's server, or this browser.
 *
 * @typedef {object} Backend
 * @property {() => Promise<Info>} info
 * @property {(file: Blob, name: string) => Promise<Photo>} open
 * @property {(name: string) => Promise<{photo: Photo, blob: Blob}>} openExample
 * @property {(key: string) => Promise<Blob>} preview   a JPEG or PNG of the whole photograph that any browser shows
 * @property {(key: string, keepRatio: KeepRatio, signal?: AbortSignal) => Promise<Encoding>} encode
 * @property {(key: string, keepRatio: KeepRatio, prompt: Prompt, signal?: AbortSignal) => Promise<Answer>} masks
 * @property {(key: string, keepRatio: KeepRatio, prompt: Prompt, choice: number, signal?: AbortSignal) =>
 *   Promise<FullMask>} fullMask
 * @property {(key: string, keepRatio: KeepRatio, options: EverythingOptions,
 *   onProgress: (progress: {done: number, found: number}) => void, signal?: AbortSignal) =>
 *   Promise<Region[]>} everything
 */

/** A stroke of the brush: a disc of `radius` drawn along its points. */
/** @typedef {{erase: boolean, radius: number, points: Point[]}} Stroke */
/**
 * An object. Its mask is `base`, or what the decoder answers to `prompt`, and then its strokes in order.
 *
 * @typedef {{id: number, name: string, colour: string, prompt: Prompt, choice: 0|1|2|null, strokes: Stroke[],
 *   base: Rle|null}} Item
 */
/** @typedef {{objects: Item[], active: number, made: number, regions: Region[]}} Scene   active: an object's id */
/** @typedef {{present: Scene, past: Scene[], future: Scene[]}} History */
/** @typedef {'object'|'background'|'box'|'add'|'erase'|'move'|'pick'} Mode   what a click or a drag does */

/** What a backend throws: one line for a person, and why the page may try again. */
export class BackendError extends Error {
  /**
   * @param {string} message
   * @param {{gone?: boolean, offline?: boolean}} [why]   gone: the photograph is not known. offline: nobody answers
   */
  constructor(message, { gone = false, offline = false } = {}) {
    super(message);
    this.name = 'BackendError';
    this.gone = gone;
    this.offline = offline;
  }
}

/** Something that cannot be done, said in one line. */
export class InputError extends Error {}
