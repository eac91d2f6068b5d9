import { beforeEach, expect, test, vi } from 'vitest';
import { addPoint, newObject, setRegions } from '../../../sam_bigltl/demo/page/scene.js';
import { Session } from '../../../sam_bigltl/demo/page/session.js';
import { BackendError } from '../../../sam_bigltl/demo/page/types.js';
import { Work } from '../../../sam_bigltl/demo/page/work.js';

const info = {
  model: 'toy', routed: true, keep_ratio: 0.5, min_keep_ratio: 0.05, max_bytes: 1000, max_side: 1280, examples: [],
  everything: { points_per_side: 4, pred_iou_thresh: 0.7, stability_score_thresh: 0.8 }, version: '0', local: false,
  home: '',
};
const file = new Blob(['a photograph']);
const empty = { width: 4, height: 3, counts: '<' };
let backend, work, known, pending;

/** A backend whose answers tests give, in any order. */
function makeBackend() {
  known = new Set();
  pending = [];
  const later = (key, prompt, keepRatio, signal) => new Promise((resolve, reject) => {
    if (!known.has(key)) return reject(new BackendError('gone', { gone: true }));
    pending.push({ prompt, keepRatio, signal, fail: reject, answer: (number = 0) => resolve({
      masks: [empty, empty, empty].map((mask) => ({ ...mask, number })), ious: [0.1, 0.9, 0.5], milliseconds: 20,
    }) });
  });
  return {
    info: async () => info,
    open: vi.fn(async (blob, name) => {
      known.add('k');
      return { key: 'k', name, width: 4, height: 3, note: '' };
    }),
    encode: vi.fn(async (key, keepRatio) => {
      if (!known.has(key)) throw new BackendError('gone', { gone: true });
      return { milliseconds: 1, keep_ratio: keepRatio, cached: false, gmacs: 1, dense_gmacs: 2, stages: [] };
    }),
    masks: (key, keepRatio, prompt, signal) => later(key, prompt, keepRatio, signal),
    everything: vi.fn(),
  };
}

beforeEach(async () => {
  backend = makeBackend();
  work = new Work(backend, info, new Session(null, 'tab'), () => {});
  await work.open(file, 'a.png');
});
const soon = () => new Promise((resolve) => setTimeout(resolve, 5));
const shown = () => work.scene.objects.map((item) => work.shown(item)?.mask.number);

test('answers that come in the wrong order belong to their own prompts', async () => {
  work.act((scene) => addPoint(scene, 1, 1, 1));
  work.act(newObject);
  work.act((scene) => addPoint(scene, 2, 2, 1));
  const [first, second] = pending;
  second.answer(2);
  await soon();
  expect(shown()).toEqual([undefined, 2]);
  first.answer(1);
  await soon();
  expect(shown()).toEqual([1, 2]);
  expect(work.scene.objects.map(({ prompt }) => prompt.points)).toEqual([[[1, 1]], [[2, 2]]]);
});

test('what is no longer asked for is aborted, and an old mask stays until the new one is there', async () => {
  work.act((scene) => addPoint(scene, 1, 1, 1));
  pending[0].answer(1);
  await soon();
  work.act((scene) => addPoint(scene, 2, 2, 1));
  expect(work.shown(work.scene.objects[0])).toMatchObject({ fresh: false, mask: { number: 1 } });
  work.act((scene) => addPoint(scene, 3, 3, 1));
  expect(pending[1].signal.aborted).toBe(true);
  pending[2].answer(3);
  await soon();
  expect(work.shown(work.scene.objects[0])).toMatchObject({ fresh: true, mask: { number: 3 } });
  work.undo();
  work.undo();
  expect(shown()).toEqual([1]); // kept, and asked once
});

test('a photograph that the server has forgotten is sent again, once, and nothing is lost', async () => {
  known.clear();
  work.act((scene) => addPoint(scene, 1, 1, 1));
  work.act(newObject);
  work.act((scene) => addPoint(scene, 2, 2, 1));
  await soon();
  expect(backend.open).toHaveBeenCalledTimes(2);
  pending.forEach((each, index) => each.answer(index + 1));
  await soon();
  expect(shown()).toEqual([1, 2]);
});

test('a server that is away for a while is asked again', async () => {
  backend.encode = vi.fn().mockRejectedValueOnce(new BackendError('away', { offline: true }))
    .mockResolvedValue({ milliseconds: 1, keep_ratio: 0.25, cached: true, gmacs: 1, dense_gmacs: 2, stages: [] });
  work.setKeepRatio(0.25);
  await soon();
  expect(work.offline).toBe(true);
  await new Promise((resolve) => setTimeout(resolve, 350));
  expect([work.offline, work.encoding.keep_ratio, work.encodingNow]).toEqual([false, 0.25, false]);
});

test('a failed open leaves the photograph before, its scene and no sign of waiting', async () => {
  work.act((scene) => addPoint(scene, 1, 1, 1));
  backend.open.mockRejectedValueOnce(new BackendError('b.png is not an image.'));
  await work.open(file, 'b.png');
  expect([work.photo.name, work.opening, work.scene.objects[0].prompt.points.length]).toEqual(['a.png', null, 1]);
  expect(work.notice).toMatchObject({ error: true, text: expect.stringContaining('is not an image') });
  expect(await work.open(new Blob(['x'.repeat(2000)]), 'c.png')).toBe(false);
  expect(work.notice.text).toContain('too large');
});

test('of two photographs the one opened last is shown, whichever comes last', async () => {
  let slow;
  backend.open.mockImplementationOnce(() => new Promise((resolve) => { slow = resolve; }));
  const first = work.open(file, 'slow.png');
  await work.open(file, 'quick.png');
  slow({ key: 'k', name: 'slow.png', width: 4, height: 3, note: '' });
  await first;
  expect(work.photo.name).toBe('quick.png');
});

test('a click that fails says so, and can be tried again', async () => {
  work.act((scene) => addPoint(scene, 1, 1, 1));
  pending[0].fail(new BackendError('The model is out of memory.'));
  await soon();
  expect(work.notice.text).toBe('No mask came. The model is out of memory.');
  work.notice.retry();
  pending[1].answer(7);
  await soon();
  expect([shown(), work.notice]).toEqual([[7], null]);
});

test('everything mode: regions are a step of the scene, nothing and stopping are said', async () => {
  const region = { mask: empty, iou: 1, stability: 1, point: [1, 1] };
  backend.everything.mockResolvedValueOnce([region]);
  await work.everything(info.everything);
  expect([work.scene.regions.length, work.notice.text]).toEqual([1, '1 region found.']);
  work.undo();
  expect(work.scene.regions).toEqual([]);
  backend.everything.mockResolvedValueOnce([]);
  await work.everything(info.everything);
  expect(work.notice.text).toContain('Lower the least predicted IoU (0.70) to 0.50');
  backend.everything.mockImplementationOnce((key, ratio, options, onProgress, signal) => new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  }));
  work.act((scene) => setRegions(scene, [region]));
  const run = work.everything(info.everything);
  work.stop();
  await run;
  expect([work.notice.text, work.scene.regions.length, work.progress])
    .toEqual(['Everything mode was stopped: nothing was changed.', 1, null]);
});

test('clear takes everything away, and undo brings it back', () => {
  work.act((scene) => addPoint(scene, 1, 1, 1));
  work.act((scene) => setRegions(scene, [{ mask: empty, iou: 1, stability: 1, point: [1, 1] }]));
  work.clear();
  expect(work.scene.regions).toEqual([]);
  work.undo();
  expect([work.scene.regions.length, work.scene.objects[0].prompt.points.length]).toEqual([1, 1]);
});
