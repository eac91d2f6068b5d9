// The second half of SAM's mask decoder: two transposed convolutions of kernel and stride 2, and the products of what
// they give with each mask's kernel, for a row of image tokens at a time, in the cache.
#pragma once

#include "linear.h"

namespace {

// Mirrors `_Draw` of native/draw.py.
struct Draw {
  const float* image;  // (prompts, rows * columns, first.in)
  int64_t prompts, rows, columns;
  Packed first, second;  // outputs by place, 2 x 2, then channel
  const float *norm_weight, *norm_bias;
  float eps;
  const float* kernels;  // (prompts, masks, channels)
  int64_t masks;
  float* out;  // (prompts, masks, 4 * rows, 4 * columns)
};

// The logits of one row of tokens; channels are multiples of kLanes.
inline void draw_row(const Draw& a, int64_t prompt, int64_t y) {
  static thread_local Buffer<float> middle_memory, last_memory;
  const int64_t middle = a.first.out / 4, last = a.second.out / 4, columns = a.columns, width = 4 * columns;
  const Rows tokens = words_for<Float32>(columns, a.first.in);
  for (int64_t x = 0; x < columns; ++x)
    round_row<Float32>(a.image + ((prompt * a.rows + y) * columns + x) * a.first.in, a.first.in, 0, tokens, x);
  float* ups = middle_memory.of(round_up(columns, kTile) * a.first.out);
  multiply<Float32, true>(tokens, columns, a.first, 0, 0, a.first.out, [&](int64_t x, int64_t channel, Floats value) {
    store(ups + x * a.first.out + channel, value);
  });
  const Rows places = words_for<Float32>(width, middle, 1);  // 2 x 2 of each token
  for (int64_t i = 0; i < width; ++i) {
    float* up = ups + i * middle;
    normalise(up, middle, a.norm_weight, a.norm_bias, a.eps, up);
    float* target = reinterpret_cast<float*>(places.words + i * places.stride);
    for (int64_t c = 0; c < middle; c += kLanes) store(target + c, gelu(load(up + c)));
  }
  float* ends = last_memory.of(round_up(width, kTile) * a.second.out);
  multiply<Float32, true>(places, width, a.second, 0, 0, a.second.out, [&](int64_t i, int64_t channel, Floats value) {
    store(ends + i * a.second.out + channel, gelu(value));
  });
  for (int64_t mask = 0; mask < a.masks; ++mask) {
    const float* kernel = a.kernels + (prompt * a.masks + mask) * last;
    float* out = a.out + ((prompt * a.masks + mask) * a.rows + y) * 4 * width;
    for (int64_t i = 0; i < 4 * width; ++i) {  // token, row and column in 2 x 2, row and column in its 2 x 2
      const float* end = ends + i * last;
      Floats total{};
      for (int64_t c = 0; c < last; c += kLanes) total = fma(load(end + c), load(kernel + c), total);
      const int64_t row = (i >> 3 & 1) * 2 + (i >> 1 & 1), column = (i >> 4) * 4 + (i >> 2 & 1) * 2 + (i & 1);
      out[row * width + column] = sum(total);
    }
  }
}

inline void draw(const Draw& a, int64_t threads) {
  parallel_for(a.prompts * a.rows, threads, [&](int64_t row) { draw_row(a, row / a.rows, row % a.rows); });
}

}  // namespace
