import { expect, test } from 'vitest';

import { Hover } from '../../../sam_bigltl/demo/page/hover.js';

test.each([
  [[], true],
  [[90], true], // the first answer is slower than those after it
  [[400], false],
  [[90, 40], true],
  [[90, 40, 60], true],
  [[90, 40, 80], false],
  [[90, 40, 80, 60, 50], true],
])('previews after answers of %j ms: %s', (times, quick) => {
  const hover = new Hover(/** @type {any} */ ({}));
  times.forEach((milliseconds) => hover.learn(milliseconds));
  expect(hover.quick).toBe(quick);
});
