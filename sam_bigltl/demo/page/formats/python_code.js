// The call that gives the same mask from Python.
import { fileNameOf } from './names.js';
import { rounded } from './polygons.js';

/** @typedef {import('./exported.js').Scenery} Scenery */

/**
 * The weights are named by their file alone: where it lies on the machine that computes is nobody's business.
 *
 * @param {Scenery} scenery   of one object
 */
export function pythonCode({ photo, objects: [{ name, prompt, choice }], info }) {
  const comment = name.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Cs}]+/gu, ' ');
  if (!prompt?.points.length && !prompt?.box) {
    return `# ${comment} was imported, found by everything mode or painted: no prompt gives it\n`;
  }
  const file = (info.checkpoint ?? (info.model ?? 'bigltl_mini') + '.safetensors').split(/[/\\]/).pop() ?? '';
  const lines = [
    'import numpy as np',
    'from sam_bigltl import SamPredictor, load_sam',
    'from sam_bigltl.images import read_image',
    '',
    `sam = load_sam(${text(file)})  # the path of your copy`,
  ];
  if (info.native || (info.dtype && info.dtype !== 'float32')) {
    const native = info.native ? 'True' : 'False';
    lines.push(`sam.image_encoder.optimize(${text(info.dtype ?? 'float32')}, native=${native})`);
  }
  if (info.routed && info.keep_ratio !== undefined) {
    lines.push('sam.image_encoder.keep_ratio = ' + (info.keep_ratio === 'auto' ? '"auto"' : info.keep_ratio));
  }
  lines.push('predictor = SamPredictor(sam)', `predictor.set_image(read_image(${text(fileNameOf(photo.name))}))`);
  const given = [];
  if (prompt.points.length) {
    given.push(`point_coords=np.array([${prompt.points.map(list).join(', ')}])`);
    given.push(`point_labels=np.array(${list(prompt.labels)})`);
  }
  if (prompt.box) given.push(`box=np.array(${list(prompt.box)})`);
  lines.push(`masks, ious, low_res = predictor.predict(${given.join(', ')})`);
  lines.push(`mask = masks[${choice ?? 'ious.argmax()'}]  # ${comment}`);
  return lines.join('\n') + '\n';
}

/** @param {number[]} values */
const list = (values) => '[' + rounded(values).join(', ') + ']';

/** @param {string} value */
const text = (value) => JSON.stringify(value);
