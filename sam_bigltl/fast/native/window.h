// A whole E-block, one window after the other: what is between its norms, its attention and its MLP never leaves the cache
// of the thread that has the window.
#pragma once

#include "attention.h"
#include "block.h"

namespace {

// Mirrors `_Window` of native/ops.py. Every token asks; there are no relative positions.
struct Window {
  float* x;  // (rows, C), in place
  int64_t stride;
  const int32_t *keys, *starts, *queries;  // as in `Attention`
  const int32_t* places;  // of each row of x, in `queries`
  int64_t key_places, windows, heads, d;
  float scale;
  const float* padding;  // keys and values of a padded place, (2 * heads * d)
  const float *norm1_weight, *norm1_bias;
  float eps1;
  Packed qkv;
  Finish rest;  // its rows are those of one window: pointers and counts are filled in here
  int32_t format;  // of the attention's products
};

template <class Format, class Products>
void run_windows(const Window& a, int64_t threads) {
  parallel_for(a.windows, threads, [&](int64_t window) {
    static thread_local Buffer<float> states, normed, projected, attended;
    static thread_local Buffer<int32_t> numbers;
    static thread_local Buffer<uint32_t> packed;
    const int64_t begin = a.starts[window], rows = a.starts[window + 1] - begin, width = a.rest.proj.out;
    if (rows == 0) return;
    const int64_t dim = a.heads * a.d, padded = round_up(rows, kTile), wide = round_up(3 * dim, kLanes) + kLanes;
    float *x = states.of(rows * width), *y = normed.of(width), *qkv = projected.of(padded * wide);
    const Rows words = words_for<Format>(rows, width);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(x + r * width, a.x + a.queries[begin + r] * a.stride, width * sizeof(float));
      normalise(x + r * width, width, a.norm1_weight, a.norm1_bias, a.eps1, y);
      round_row<Format>(y, width, a.qkv.row_levels, words, r);
    }
    multiply<Format, true>(words, rows, a.qkv, 0, 0, 3 * dim, [&](int64_t r, int64_t column, Floats value) {
      store(qkv + r * wide + column, value);
    });
    int32_t* keys = numbers.of(a.key_places + rows + 2);
    for (int64_t i = 0; i < a.key_places; ++i) {
      const int32_t key = a.keys[window * a.key_places + i];
      keys[i] = key < 0 ? -1 : a.places[key] - static_cast<int32_t>(begin);
    }
    int32_t* queries = keys + a.key_places;
    for (int64_t r = 0; r < rows; ++r) queries[r] = static_cast<int32_t>(r);
    queries[rows] = 0, queries[rows + 1] = static_cast<int32_t>(rows);
    Attention one{};
    one.q = qkv, one.q_stride = wide, one.big = qkv + dim, one.big_stride = wide, one.num_big = rows;
    one.padding = a.padding, one.keys = keys, one.starts = queries + rows, one.queries = queries;
    one.key_rows = 1, one.key_columns = a.key_places, one.windows = 1, one.heads = a.heads, one.d = a.d;
    one.scale = a.scale, one.out = attended.of(rows * dim), one.out_stride = dim;
    const Plan<Products> plan(one);
    for (int64_t head = 0; head < a.heads; ++head) {
      uint32_t* own = packed.of(plan.head_words);
      pack_keys<Products, float>(one, plan, 0, head, own);
      for (int64_t i = 0; i < rows; i += kQueries)
        attend_block<Products, float>(one, plan, nullptr, own, head, i, std::min(rows, i + kQueries), own_block());
    }
    Finish rest = a.rest;
    rest.attended = one.out, rest.attended_stride = dim, rest.x = rest.out = x, rest.x_stride = rest.out_stride = width;
    rest.rows = rows;
    finish_rows<Format>(rest, 0, rows);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(a.x + a.queries[begin + r] * a.stride, x + r * width, width * sizeof(float));
  });
}

}  // namespace
