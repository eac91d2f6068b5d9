// The second half of a transformer block, row by row: projection of what was attended to, residual, the LITTLE stream's
// share, and the MLP with its norm. Everything between stays in the cache of the thread that computes it.
#pragma once

#include "linear.h"

namespace {

// Mirrors `_Finish` of native/ops.py.
struct Finish {
  const float* attended;  // (rows, width of the heads), attended_stride apart
  int64_t attended_stride;
  const float* x;  // (rows, C), what the block started from
  int64_t x_stride, rows;
  Packed proj;
  const float* little;  // null: no LITTLE stream
  int64_t little_stride;
  const int64_t* little_rows;  // of each row, in `little`
  Packed up;  // with gamma in its weights and bias
  const float *norm_weight, *norm_bias;
  float eps;
  Packed lin1, lin2;  // lin2 in chunks of its inputs; a multiple of kPanel, or all
  float* out;  // (rows, C); may be x
  int64_t out_stride;
};

// x += product of `rows` (words) with chunk `chunk` of p, and its bias where `Bias`; x is (rows, stride).
template <class Format, bool Bias>
BIGLTL_INLINE void add_product(const Rows& words, int64_t rows, const Packed& p, int64_t chunk, float* x, int64_t stride) {
  multiply<Format, Bias>(words, rows, p, chunk, 0, p.out, [&](int64_t r, int64_t column, Floats value) {
    float* place = x + r * stride + column;  // rows and columns that are not there have memory, too
    store(place, value + load(place));
  });
}

// Rows `first` to `first` + `rows` - 1 of `a`; `attended` and `x` are those of the first one.
template <class Format>
void finish_rows(const Finish& a, int64_t first, int64_t rows) {
  static thread_local Buffer<float> states, normed, hidden;
  const int64_t width = a.proj.out, stride = round_up(width, kLanes) + kLanes, padded = round_up(rows, kTile);
  float* x = states.of(padded * stride);
  Rows words = words_for<Format>(rows, a.proj.in);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(x + r * stride, a.x + (first + r) * a.x_stride, width * sizeof(float));
    round_row<Format>(a.attended + (first + r) * a.attended_stride, a.proj.in, a.proj.row_levels, words, r);
  }
  add_product<Format, true>(words, rows, a.proj, 0, x, stride);
  if (a.little != nullptr) {
    words = words_for<Format>(rows, a.up.in);
    for (int64_t r = 0; r < rows; ++r)
      round_row<Format>(a.little + a.little_rows[first + r] * a.little_stride, a.up.in, a.up.row_levels, words, r);
    add_product<Format, true>(words, rows, a.up, 0, x, stride);
  }
  words = words_for<Format>(rows, width);
  for (int64_t r = 0; r < rows; ++r) {
    float* y = normed.of(width);
    normalise(x + r * stride, width, a.norm_weight, a.norm_bias, a.eps, y);
    round_row<Format>(y, width, a.lin1.row_levels, words, r);
  }
  const int64_t all_hidden = a.lin1.out, hidden_stride = round_up(std::min(a.lin2.chunk, all_hidden), kLanes) + kLanes;
  float* h = hidden.of(padded * hidden_stride);
  for (int64_t begin = 0; begin < all_hidden; begin += a.lin2.chunk) {
    const int64_t end = std::min(begin + a.lin2.chunk, all_hidden), count = end - begin;
    multiply<Format, true>(words, rows, a.lin1, 0, begin, end, [&](int64_t r, int64_t column, Floats value) {
      store(h + r * hidden_stride + column - begin, value);
    });
    const Rows some = words_for<Format>(rows, count, 1);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = h + r * hidden_stride;
      // Not where the product ends: there it would cost the tile its registers (float32: 40 instead of 50 GMAC/s).
      for (int64_t c = 0; c < count; c += kLanes) store(row + c, gelu_for<Format>(load(row + c)));
      round_row<Format>(row, count, a.lin2.row_levels, some, r);
    }
    if (begin == 0) add_product<Format, true>(some, rows, a.lin2, 0, x, stride);
    else add_product<Format, false>(some, rows, a.lin2, begin / a.lin2.chunk, x, stride);
  }
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(a.out + (first + r) * a.out_stride, x + r * stride, width * sizeof(float));
}

template <class Format>
void finish(const Finish& a, int64_t threads) {
  const int64_t step = block_rows(a.rows, threads);
  parallel_for((a.rows + step - 1) / step, threads, [&](int64_t block) {
    finish_rows<Format>(a, block * step, std::min(step, a.rows - block * step));
  });
}

}  // namespace
