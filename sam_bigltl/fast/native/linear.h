// A linear layer on rows: gather, LayerNorm, product, activation, residual and scatter in one pass.
#pragma once

#include "parallel.h"
#include "product.h"

namespace {

enum Activation : int32_t { kNone = 0, kGelu = 1 };

template <class Format>
BIGLTL_INLINE Floats gelu_for(Floats value) {
  return std::is_same_v<Format, Float32> ? gelu(value) : rough_gelu(value);
}

// Mirrors `_Linear` of native/ops.py.
struct Linear {
  const float* x;  // rows x_stride apart
  int64_t x_stride;
  const int64_t* source;  // the row of x of each row; null: in order
  int64_t rows;
  Packed weights;
  const float *norm_weight, *norm_bias;  // null: no norm
  float eps;
  int32_t activation;
  const float* residual;  // rows as in `out`, residual_stride apart; null: none
  int64_t residual_stride;
  void* out;  // rows out_stride apart
  int64_t out_stride;
  const int64_t* target;  // the row of out of each row; null: in order
  int32_t half;  // out holds halves, not floats; not with an activation
};

constexpr int64_t kBlock = 12 * kTile;  // rows that one thread takes at a time

inline int64_t block_rows(int64_t rows, int64_t threads) {
  return std::min(kBlock, std::max<int64_t>(kTile, round_up(rows / (4 * threads), kTile)));
}

// The words of the rows of one block, in memory of this thread.
template <class Format>
Rows words_for(int64_t rows, int64_t values, int place = 0) {
  static thread_local Buffer<uint32_t> words[2];
  static thread_local Buffer<float> scales[2];
  static thread_local Buffer<int32_t> shifts[2];
  const int64_t padded = round_up(rows, kTile), stride = row_stride(values, Format::kValues);
  return {words[place].of(padded * stride), stride, scales[place].of(padded), shifts[place].of(padded)};
}

template <class Format, class T, int32_t Kind>
void linear(const Linear& a, int64_t threads) {
  const Packed& p = a.weights;
  const int64_t step = block_rows(a.rows, threads);
  parallel_for((a.rows + step - 1) / step, threads, [&](int64_t block) {
    static thread_local Buffer<float> normed;
    const int64_t first = block * step, rows = std::min(step, a.rows - first);
    const Rows words = words_for<Format>(rows, p.in);
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = a.x + (a.source == nullptr ? first + r : a.source[first + r]) * a.x_stride;
      if (a.norm_weight != nullptr) {
        float* y = normed.of(p.in);
        normalise(x, p.in, a.norm_weight, a.norm_bias, a.eps, y);
        x = y;
      }
      round_row<Format>(x, p.in, p.row_levels, words, r);
    }
    multiply<Format, true>(words, rows, p, 0, 0, p.out, [&](int64_t r, int64_t column, Floats value) {
      if (r >= rows) return;
      const int64_t left = p.out - column;
      if constexpr (Kind == kGelu) value = gelu_for<Format>(value);
      const int64_t row = a.target == nullptr ? first + r : a.target[first + r];
      if (a.residual != nullptr) value += load(a.residual + row * a.residual_stride + column, left);
      store(static_cast<T*>(a.out) + row * a.out_stride + column, value, left);
    });
  });
}

}  // namespace
