import { expect, test } from 'vitest';
import { areaOf, boundsOf, countsOf, decode, encode, runsOf } from '../../../sam_bigltl/demo/page/formats/rle.js';
import { bitsAt, resized } from '../../../sam_bigltl/demo/page/formats/scale.js';
import { disc, drawn, iou, noise } from './formats_toy.js';

const rleOf = ({ bits, width, height }) => encode(bits, width, height);

test('strings are those of pycocotools', () => {
  // Written by pycocotools 2.0 for these masks.
  expect(rleOf(drawn('....', '....', '....', '....')).counts).toBe('`0');
  expect(rleOf(drawn('####', '####', '####', '####')).counts).toBe('0`0');
  expect(rleOf(drawn('#...', '.#..', '..#.', '...#')).counts).toBe('01400000');
  expect(rleOf(drawn('..#', '.##')).counts).toBe('33');
});

test('what is encoded is decoded again', () => {
  for (let seed = 1; seed < 200; seed++) {
    const width = 1 + seed % 13, height = 1 + seed % 17, bits = noise(width, height, (seed % 10) / 9, seed);
    const rle = encode(bits, width, height);
    expect(decode(rle)).toEqual(bits);
    expect(areaOf(rle)).toBe(bits.reduce((sum, bit) => sum + bit, 0));
    expect(countsOf(runsOf(rle.counts))).toBe(rle.counts);
  }
});

test('a part of a picture is encoded as the whole with nothing around', () => {
  const part = drawn('##.', '.##'), whole = drawn('.....', '.##..', '..##.', '.....');
  expect(encode(part.bits, 5, 4, [1, 1, 3, 2])).toEqual(rleOf(whole));
});

test('bounds are the least rectangle, also where a run goes on in the next column', () => {
  expect(boundsOf(rleOf(drawn('.....', '.##..', '..##.', '.....')))).toEqual([1, 1, 3, 2]);
  expect(boundsOf(rleOf(drawn('.#.', '.#.', '#..')))).toEqual([0, 0, 2, 3]);
  expect(boundsOf(rleOf(drawn('..', '..')))).toEqual([0, 0, 0, 0]);
});

test('broken strings end in one line', () => {
  for (const counts of ['', 'x', '~', '\u0000', '4', 'P', 'PPPPPPPPPPPPPPPPPP0', 'oooooooooooooo', 'O', '0O0']) {
    expect(() => decode({ width: 4, height: 4, counts })).toThrow('The RLE is broken');
  }
});

test('60 megapixels are encoded and decoded', { timeout: 60000 }, () => {
  const width = 9000, height = 6667, bits = new Uint8Array(width * height);
  for (let y = 1000; y < 5000; y++) bits.fill(1, y * width + 2000 + y % 7, y * width + 7000 - y % 11);
  const rle = encode(bits, width, height);
  expect(areaOf(rle)).toBeGreaterThan(4000 * 4900);
  expect(Buffer.compare(decode(rle), bits)).toBe(0);
});

test('a mask at another size covers the same', () => {
  const small = encode(disc(160, 120, 70, 60, 40), 160, 120);
  const large = disc(1600, 1200, 700, 600, 400);
  expect(iou(bitsAt(small, 1600, 1200), large)).toBeGreaterThan(0.98);
  expect(iou(bitsAt(encode(large, 1600, 1200), 160, 120), decode(small))).toBeGreaterThan(0.98);
  expect(resized(small, 1600, 1200)).toEqual(encode(bitsAt(small, 1600, 1200), 1600, 1200));
  expect(resized(small, 160, 120)).toBe(small);
});

test('a size that is larger one way and smaller the other', () => {
  const rle = encode(disc(40, 40, 20, 20, 15), 40, 40), bits = bitsAt(rle, 90, 30);
  expect(iou(bits, decode(encode(bits, 90, 30)))).toBe(1);
  expect(bits.reduce((sum, bit) => sum + bit, 0) / (90 * 30)).toBeCloseTo(areaOf(rle) / 1600, 1);
  expect(areaOf(resized(encode(new Uint8Array(16), 4, 4), 9, 9))).toBe(0);
});
