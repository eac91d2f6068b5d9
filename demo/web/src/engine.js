// What the demo's server does, in this browser: photographs and embeddings that are kept, masks of prompts, everything
// mode.
import { countsOf } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { shownSize } from '../../../sam_bigltl/demo/page/masks.js';
import { BackendError } from '../../../sam_bigltl/demo/page/types.js';
import { areaOf, boxOf, inFrame, runsAbove } from './enlarge.js';
import { gridOf, keptBoxes } from './everything.js';
import { readPhotograph } from './photographs.js';
import { stageOf } from './pictures.js';
import { imageTensor, promptTensors } from './tensors.js';

/** @typedef {import('../../../sam_bigltl/demo/page/types.js').KeepRatio} KeepRatio */
/** @typedef {import('../../../sam_bigltl/demo/page/types.js').Prompt} Prompt */
/** @typedef {import('./photographs.js').Photograph} Photograph */
/** @typedef {import('../../../sam_bigltl/demo/page/types.js').Region} Region */
/**
 * What the export says of the model.
 *
 * @typedef {{info: import('../../../sam_bigltl/demo/page/types.js').Info, image_size: number, patch_size: number,
 *   pixel_mean: number[], pixel_std: number[], mask_threshold: number, auto_mass: number, least_tokens: number,
 *   layers: number[][], check: number[], gmacs: {dense: number, base: number, share: number[]}}} Model
 */
/** @typedef {{embedding: Float32Array, encoding: import('../../../sam_bigltl/demo/page/types.js').Encoding}} Encoded */

const KEPT_PHOTOS = 8, KEPT_EMBEDDINGS = 32; // at most 10 and 51 MB with the mini
const AT_ONCE = 8; // points of everything mode
const CHECK_TOLERANCE = 0.1; // of the mean size of an embedding's numbers
const STABILITY_OFFSET = 1, BOX_OVERLAP = 0.7; // segment_anything's

export class Engine {
  /**
   * @param {Model} model
   * @param {import('./runtime.js').Runtime} runtime
   */
  constructor(model, runtime) {
    this.model = model;
    this.runtime = runtime;
    this.grid = model.image_size / model.patch_size;
    /** @type {Map<string, Photograph>} */
    this.photos = new Map();
    /** @type {Map<string, Promise<Encoded>>} */
    this.encoded = new Map();
  }

  /**
   * @param {Blob} file
   * @param {string} name
   * @returns {Promise<import('../../../sam_bigltl/demo/page/types.js').Photo>}
   */
  async open(file, name) {
    const photo = await readPhotograph(file, name, this.model.image_size, this.model.info.max_bytes);
    keep(this.photos, photo.key, photo, KEPT_PHOTOS);
    const { key, width, height } = photo;
    return { key, name, width, height, note: '' }; // nothing was reduced
  }

  /** @param {string} key */
  preview(key) {
    return this.photo(key).file;
  }

  /** @param {string} key */
  photo(key) {
    const photo = this.photos.get(key);
    if (!photo) throw new BackendError('The photograph is no longer in memory.', { gone: true });
    keep(this.photos, key, photo, KEPT_PHOTOS);
    return photo;
  }

  /**
   * @param {string} key
   * @param {KeepRatio} ratio
   */
  async encode(key, ratio) {
    const cached = this.encoded.has(`${key} ${ratio}`);
    const { encoding } = await this.embed(key, ratio);
    return { ...encoding, cached };
  }

  /**
   * The embedding, computed once while it is kept.
   *
   * @param {string} key
   * @param {KeepRatio} ratio
   * @returns {Promise<Encoded>}
   */
  embed(key, ratio) {
    const name = `${key} ${ratio}`, photo = this.photo(key);
    const encoded = this.encoded.get(name) ?? this.compute(photo, ratio);
    keep(this.encoded, name, encoded, KEPT_EMBEDDINGS);
    encoded.catch(() => this.encoded.delete(name));
    return encoded;
  }

  /**
   * @param {Photograph} photo
   * @param {KeepRatio} ratio
   * @returns {Promise<Encoded>}
   */
  async compute({ rgb, input }, ratio) {
    const { image_size: side, pixel_mean: mean, pixel_std: std, gmacs, layers } = this.model;
    const tokens = this.grid ** 2, dense = ratio === 1, graph = graphOf(ratio);
    await this.runtime.session(graph); // not part of the time
    const start = performance.now();
    const found = await this.runEncoder(imageTensor(rgb, input, side, mean, std), ratio);
    const milliseconds = performance.now() - start;
    const groups = layers.map((span, i) => {
      const of = (/** @type {Float32Array} */ all) => all.subarray(i * tokens, (i + 1) * tokens);
      return dense ? { layers: span, scores: null, selected: new Float32Array(tokens).fill(1) }
        : { layers: span, scores: of(found.scores), selected: of(found.selected) };
    });
    const stages = await Promise.all(groups.map((group) => stageOf(group, this.grid)));
    const spent = dense ? gmacs.dense : stages.reduce((sum, { share }, i) => sum + share * gmacs.share[i], gmacs.base);
    return {
      embedding: found.image_embeddings,
      encoding: { milliseconds, keep_ratio: ratio, cached: false, gmacs: spent, dense_gmacs: gmacs.dense, stages },
    };
  }

  /**
   * @param {Float32Array} image
   * @param {KeepRatio} ratio
   */
  runEncoder(image, ratio) {
    const { image_size: side, least_tokens: fewest, auto_mass: mass } = this.model, tokens = this.grid ** 2;
    /** @type {import('./runtime.js').Feeds} */
    const feeds = { images: { type: 'float32', data: image, dims: [1, 3, side, side] } };
    if (ratio !== 1) {
      const count = ratio === 'auto' ? 0 : Math.round(ratio * tokens);
      const least = Math.min(Math.max(count, fewest), tokens);
      feeds.big_tokens = { type: 'int64', data: BigInt64Array.of(BigInt(least)), dims: [1] };
      feeds.mass = { type: 'float32', data: Float32Array.of(ratio === 'auto' ? mass : 0), dims: [1] };
    }
    return this.runtime.run(graphOf(ratio), feeds);
  }

  /** Whether the encoder gives here what it gave when it was exported: drivers of GPUs have faults. */
  async computes() {
    const { image_size: side, check } = this.model;
    const pattern = Float32Array.from({ length: 3 * side * side }, (_, place) => Math.sin(place / 1000));
    const { image_embeddings: found } = await this.runEncoder(pattern, 0.5);
    const step = Math.floor(found.length / check.length);
    const wrong = check.reduce((sum, value, i) => sum + Math.abs(value - found[i * step]), 0);
    return wrong < CHECK_TOLERANCE * check.reduce((sum, value) => sum + Math.abs(value), 0);
  }

  /**
   * The decoder's three masks of each prompt, as logits on its own grid, and their predicted IoUs.
   *
   * @param {Float32Array} embedding
   * @param {Photograph} photo
   * @param {Prompt[]} prompts   with as many points and boxes each
   * @returns {Promise<{logits: Float32Array[], ious: number[]}[]>}
   */
  async decode(embedding, photo, prompts) {
    const { grid } = this, fine = 4 * grid, area = fine * fine, count = prompts.length;
    const parts = prompts.map((prompt) => promptTensors(prompt, photo, photo.input)), points = parts[0].labels.length;
    const coords = new Float32Array(count * points * 2), labels = new BigInt64Array(count * points);
    parts.forEach((part, i) => {
      coords.set(part.coords, i * points * 2);
      labels.set(part.labels, i * points);
    });
    const found = await this.runtime.run('decoder', {
      image_embeddings: { type: 'float32', data: embedding, dims: [1, embedding.length / grid ** 2, grid, grid] },
      point_coords: { type: 'float32', data: coords, dims: [count, points, 2] },
      point_labels: { type: 'int64', data: labels, dims: [count, points] },
      mask_input: { type: 'float32', data: new Float32Array(count * area), dims: [count, 1, fine, fine] },
      has_mask_input: { type: 'float32', data: new Float32Array(1), dims: [1] },
    });
    return prompts.map((_, i) => ({ // the first of four is the single mask
      logits: [1, 2, 3].map((mask) => found.low_res_masks.subarray((4 * i + mask) * area, (4 * i + mask + 1) * area)),
      ious: [...found.iou_predictions.subarray(4 * i + 1, 4 * i + 4)],
    }));
  }

  /**
   * @param {Photograph} photo
   * @param {Float32Array} logits
   */
  inFrame({ input }, logits) {
    return inFrame(logits, 4 * this.grid, this.model.image_size, input);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} ratio
   * @param {Prompt} prompt
   * @returns {Promise<import('../../../sam_bigltl/demo/page/types.js').Answer>}
   */
  async masks(key, ratio, prompt) {
    const photo = this.photo(key), { embedding } = await this.embed(key, ratio), start = performance.now();
    const [{ logits, ious }] = await this.decode(embedding, photo, [prompt]), size = this.viewOf(photo);
    const masks = logits.map((each) => this.rle(photo, each, size));
    return { masks, ious, milliseconds: performance.now() - start };
  }

  /**
   * @param {string} key
   * @param {KeepRatio} ratio
   * @param {Prompt} prompt
   * @param {number} choice
   * @returns {Promise<import('../../../sam_bigltl/demo/page/types.js').FullMask>}
   */
  async fullMask(key, ratio, prompt, choice) {
    const photo = this.photo(key), { embedding } = await this.embed(key, ratio);
    const [{ logits, ious }] = await this.decode(embedding, photo, [prompt]);
    return { mask: this.rle(photo, logits[choice], photo), iou: ious[choice] };
  }

  /**
   * @param {Photograph} photo
   * @param {Float32Array} logits
   * @param {{width: number, height: number}} size
   */
  rle(photo, logits, { width, height }) {
    const runs = runsAbove(this.inFrame(photo, logits), photo.input, { width, height }, this.model.mask_threshold);
    return { width, height, counts: countsOf(runs) };
  }

  /** @param {Photograph} photo */
  viewOf(photo) {
    return shownSize(photo, this.model.info.max_side);
  }

  /**
   * @param {string} key
   * @param {KeepRatio} ratio
   * @param {import('../../../sam_bigltl/demo/page/types.js').EverythingOptions} options
   * @param {(progress: {done: number, found: number}) => void} report
   * @param {() => boolean} stopped
   * @returns {Promise<Region[]>}
   */
  async everything(key, ratio, options, report, stopped) {
    const photo = this.photo(key), { embedding } = await this.embed(key, ratio), size = this.viewOf(photo);
    const { mask_threshold: threshold } = this.model, points = gridOf(options.points_per_side, photo);
    /** @type {{region: Region, box: [number, number, number, number]}[]} */
    const found = [];
    for (let start = 0; start < points.length && !stopped(); start += AT_ONCE) {
      const some = points.slice(start, start + AT_ONCE);
      const answers = await this.decode(embedding, photo, some.map(asPrompt));
      answers.forEach(({ logits, ious }, i) => ious.forEach((iou, mask) => {
        if (iou <= options.pred_iou_thresh) return;
        const frame = this.inFrame(photo, logits[mask]);
        const above = (/** @type {number} */ than) => runsAbove(frame, photo.input, size, than);
        const [sure, likely] = [STABILITY_OFFSET, -STABILITY_OFFSET].map((by) => areaOf(above(threshold + by)));
        const stability = sure / likely;
        if (!(stability >= options.stability_score_thresh)) return;
        const runs = above(threshold);
        const region = { mask: { ...size, counts: countsOf(runs) }, iou, stability, point: some[i] };
        found.push({ region, box: boxOf(runs, size.height) });
      }));
      report({ done: Math.min(1, (start + some.length) / points.length), found: found.length });
      await new Promise((resolve) => setTimeout(resolve)); // so that a click, or a stop, comes in between
    }
    return keptBoxes(found.map(({ box }) => box), found.map(({ region }) => region.iou), BOX_OVERLAP)
      .map((i) => found[i].region);
  }
}

/** @param {KeepRatio} ratio */
function graphOf(ratio) {
  return ratio === 1 ? 'encoder_dense' : 'encoder';
}

/**
 * @param {[number, number]} point
 * @returns {Prompt}
 */
function asPrompt(point) {
  return { points: [point], labels: [1], box: null };
}

/**
 * Put `value` last in a map of at most `most`, of which the first goes.
 *
 * @template T
 * @param {Map<string, T>} map
 * @param {string} key
 * @param {T} value
 * @param {number} most
 */
function keep(map, key, value, most) {
  map.delete(key);
  map.set(key, value);
  for (const first of map.keys()) if (map.size > most) map.delete(first);
}
