// The masks of objects at the size of the original photograph, strokes included.
import { maskOf } from './formats/masks.js';
import { encode } from './formats/rle.js';
import { hasPrompt } from './scene.js';
import { best } from './work.js';

/**
 * @typedef {import('./types.js').Item} Item
 * @typedef {import('./types.js').Rle} Rle
 */

/**
 * @param {import('./work.js').Work} work
 * @param {Item[]} items
 * @param {AbortSignal} signal
 * @param {(at: number) => void} onProgress   which of them is under way, from 1
 */
export async function fullObjects(work, items, signal, onProgress) {
  const { photo } = work, { keepRatio } = work.settings, objects = [];
  if (!photo) return [];
  for (const [index, item] of items.entries()) {
    onProgress(index + 1);
    /** @type {Rle|null} */
    let decoded = null;
    /** @type {number|null} */
    let iou = null, choice = null;
    if (hasPrompt(item)) {
      const { prompt } = item;
      const answer = work.answers.get({ keepRatio, prompt }) ?? await work.masks(keepRatio, prompt, signal);
      const chosen = choice = item.choice ?? best(answer.ious);
      const call = () => work.backend.fullMask(work.key, keepRatio, prompt, chosen, signal);
      ({ mask: decoded, iou } = await work.steady.run(call, signal));
    }
    signal.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive between large masks
    const { width, height } = photo;
    const plain = decoded && !item.strokes.length ? decoded : null;
    const mask = plain ?? encode(maskOf(item, width, height, decoded, photo), width, height);
    objects.push({ id: item.id, name: item.name, colour: item.colour, mask, iou, prompt: item.prompt, choice });
  }
  return objects;
}
