import { beforeEach, expect, test } from 'vitest';
import { Gestures } from '../../../sam_bigltl/demo/page/gestures.js';

let meant, gestures;
beforeEach(() => {
  meant = [];
  const names = ['click', 'dragStart', 'drag', 'dragEnd', 'dragCancel', 'pan', 'pinch', 'hover'];
  gestures = new Gestures(Object.fromEntries(names.map((name) => [name, (...what) => meant.push([name, ...what])])));
});
const names = () => meant.map(([name]) => name);
const pointer = (x, y, more) => ({ id: 1, type: 'mouse', button: 0, shift: false, pan: false, x, y, ...more });
const stroke = (places, more) => {
  gestures.press(pointer(...places[0], more));
  for (const place of places.slice(1)) gestures.move(pointer(...place, more));
  gestures.release(pointer(...places.at(-1), more));
};

test('a finger that trembles by 7 pixels clicks, and where it went down', () => {
  stroke([[100, 100], [105, 103], [107, 100]], { type: 'touch' });
  expect(meant).toEqual([['click', { x: 100, y: 100, touch: true, right: false, shift: false }]]);
});

test('a mouse that moves by 7 pixels drags, from where it went down', () => {
  stroke([[100, 100], [107, 100], [140, 150]]);
  expect(names()).toEqual(['dragStart', 'drag', 'drag', 'dragEnd']);
  expect(meant[0][1]).toMatchObject({ x: 100, y: 100 });
  expect(meant.at(-1)[1]).toMatchObject({ x: 140, y: 150 });
});

test('two fingers pinch, and leave neither a click nor a box', () => {
  const touch = { type: 'touch' };
  gestures.press(pointer(100, 100, touch));
  gestures.move(pointer(150, 100, touch)); // one finger was dragging
  gestures.press(pointer(200, 200, { ...touch, id: 2 }));
  gestures.move(pointer(160, 110, touch));
  gestures.move(pointer(260, 230, { ...touch, id: 2 }));
  gestures.release(pointer(160, 110, touch));
  gestures.move(pointer(300, 300, { ...touch, id: 2 }));
  gestures.release(pointer(300, 300, { ...touch, id: 2 }));
  expect(names()).toEqual(['dragStart', 'drag', 'dragCancel', 'pinch', 'pinch']);
  expect(meant[4].slice(1)).toEqual([[[160, 110], [200, 200]], [[160, 110], [260, 230]]]);
  stroke([[10, 10]], touch);
  expect(names().at(-1)).toBe('click'); // and the next finger is heard again
});

test('buttons and keys are told', () => {
  stroke([[1, 1]], { button: 2 });
  stroke([[1, 1]], { shift: true });
  expect(meant.map(([, press]) => [press.right, press.shift])).toEqual([[true, false], [false, true]]);
});

test('the middle button and the space bar move the photograph', () => {
  stroke([[10, 10], [11, 13], [30, 33]], { button: 1 });
  stroke([[10, 10], [30, 33]], { pan: true });
  expect(meant).toEqual([['pan', 1, 3], ['pan', 19, 20], ['pan', 20, 23]]);
});

test('what is cancelled means nothing', () => {
  gestures.press(pointer(1, 1));
  gestures.move(pointer(50, 50));
  gestures.cancel();
  gestures.release(pointer(50, 50));
  expect(names()).toEqual(['dragStart', 'drag', 'dragCancel']);
});

test('a mouse that is not pressed hovers; a finger never does', () => {
  gestures.move(pointer(4, 5));
  gestures.move(pointer(4, 5, { type: 'touch', id: 9 }));
  expect(meant).toEqual([['hover', { x: 4, y: 5, touch: false, right: false, shift: false }]]);
});
