import { expect, test } from 'vitest';
import {
  fit, isFit, limits, onPhoto, pan, pinch, resized, toPhoto, toStage, zoomAt,
} from '../../../sam_bigltl/demo/page/view.js';

const stage = { width: 1000, height: 600 };
const photos = {
  photo: { width: 4000, height: 3000 }, panorama: { width: 12000, height: 900 }, tower: { width: 500, height: 9000 },
  tiny: { width: 20, height: 16 },
};

test.each(Object.entries(photos))('a %s is whole, in the middle and not stretched', (_, photo) => {
  const view = fit(photo, stage), [left, top] = toStage(view, 0, 0);
  const [right, bottom] = toStage(view, photo.width, photo.height);
  expect((right - left) / (bottom - top)).toBeCloseTo(photo.width / photo.height, 6);
  expect(Math.min(left, top)).toBeGreaterThanOrEqual(0);
  expect(left + right).toBeCloseTo(stage.width, 6);
  expect(top + bottom).toBeCloseTo(stage.height, 6);
});

test.each(Object.entries(photos))('points of a %s are exact at every zoom', (_, photo) => {
  let view = fit(photo, stage), steps = 0;
  for (; steps < 200 && view.scale < limits(photo, stage)[1]; steps++) {
    view = zoomAt(view, 1.2, 333, 222, photo, stage);
    for (const [x, y] of [[0.3, 0.7], [333, 222], [999, 599]]) {
      const [backX, backY] = toStage(view, ...toPhoto(view, x, y));
      expect(backX).toBeCloseTo(x, 6);
      expect(backY).toBeCloseTo(y, 6);
    }
  }
  expect(view.scale).toBe(Math.max(32, fit(photo, stage).scale)); // up to the original's own pixels
});

test('zoom keeps what is under the pointer', () => {
  const photo = photos.photo, view = zoomAt(fit(photo, stage), 4, 500, 300, photo, stage);
  const before = toPhoto(view, 612, 287), after = toPhoto(zoomAt(view, 1.7, 612, 287, photo, stage), 612, 287);
  expect(after[0]).toBeCloseTo(before[0], 6);
  expect(after[1]).toBeCloseTo(before[1], 6);
});

test('two fingers move and spread what is under them', () => {
  const photo = photos.photo, view = zoomAt(fit(photo, stage), 6, 500, 300, photo, stage);
  const before = [[400, 300], [600, 300]], after = [[380, 340], [680, 340]];
  const now = pinch(view, before, after, photo, stage);
  expect(now.scale / view.scale).toBeCloseTo(1.5, 6);
  expect(toPhoto(now, 530, 340)).toEqual(toPhoto(view, 500, 300).map((value) => expect.closeTo(value, 4)));
});

test('the photograph cannot be lost beside the stage', () => {
  const photo = photos.photo, near = zoomAt(fit(photo, stage), 5, 500, 300, photo, stage);
  for (const [dx, dy] of [[1e5, 0], [-1e5, 0], [0, 1e5], [0, -1e5]]) {
    const view = pan(near, dx, dy, photo, stage), [left, top] = toStage(view, 0, 0);
    const [right, bottom] = toStage(view, photo.width, photo.height);
    expect(left <= 10 && top <= 10 && right >= stage.width - 10 && bottom >= stage.height - 10).toBe(true);
  }
  const whole = fit(photo, stage);
  expect(pan(whole, 300, 300, photo, stage)).toEqual(whole);
});

test('another size of the stage keeps the middle, or all of the photograph', () => {
  const photo = photos.photo, after = { width: 390, height: 500 }, whole = fit(photo, stage);
  expect(isFit(resized(whole, photo, stage, after), photo, after)).toBe(true);
  const near = zoomAt(whole, 8, 420, 310, photo, stage), moved = resized(near, photo, stage, after);
  expect(moved.scale).toBe(near.scale);
  expect(toPhoto(moved, 195, 250)).toEqual(toPhoto(near, 500, 300).map((value) => expect.closeTo(value, 4)));
});

test('coordinates stay on the photograph, with hundredths of a pixel', () => {
  expect(onPhoto(photos.tiny, -3, 99)).toEqual([0, 16]);
  expect(onPhoto(photos.tiny, 1.23456, 2)).toEqual([1.23, 2]);
});
