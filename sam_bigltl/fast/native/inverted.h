// Inverted residual blocks (arXiv 1801.04381) on images with channels last: a 1 x 1 convolution that expands, a depthwise
// one, and a 1 x 1 one that projects, with ReLU6 after the first two. The expanded rows that a row of the output needs
// are kept in a ring, so that nothing expanded leaves the cache of the thread that computes it.
#pragma once

#include "parallel.h"
#include "product.h"

namespace {

constexpr int kAtOnce = 4;  // neighbours along a row whose sums are in registers together

// Mirrors `_Inverted` of native/stem.py.
struct Inverted {
  const float* x;  // (rows, columns, channels), or (2 rows + 1, 2 columns + 1, channels) where patch is 3
  int64_t x_stride;             // from row to row
  int64_t rows, columns;        // before the depthwise convolution
  int64_t out_rows, out_columns;  // the top left part of the output that is wanted; the rest is left as it is
  int64_t patch;          // 1; or 3: the first convolution is one of 3 x 3 with stride 2 that reads x
  Packed expand;          // no words: there is none
  const float *depthwise, *depthwise_bias;  // (kernel * kernel, hidden), (hidden); hidden rounded up to kLanes
  int64_t hidden, kernel, stride;
  Packed project;
  int32_t residual;
  float* out;  // (rows / stride, columns / stride, project.out), rounded up
};

// An image (3, rows, columns) as the first block reads it: (x * scale + shift), channels last, with a row and a column of
// padding after the last. `filled` gets the rows and columns of the top left part beyond which x is zero.
struct Pixels {
  const float* x;
  int64_t rows, columns;
  float scale[3], shift[3];
  float* out;         // (rows + 1, columns + 1, 3)
  int32_t* last;      // of each row: columns up to the last that is not zero, (rows)
};

inline int64_t last_filled(const float* x, int64_t count) {
  constexpr int64_t kStep = 64;
  while (count >= kStep) {  // whole steps without a branch inside
    uint32_t any = 0;
    for (int64_t i = count - kStep; i < count; ++i) any |= x[i] != 0.0f;
    if (any) break;
    count -= kStep;
  }
  while (count > 0 && x[count - 1] == 0.0f) --count;
  return count;
}

inline void prepare(const Pixels& a, int64_t threads) {
  const int64_t plane = a.rows * a.columns, line = (a.columns + 1) * 3;
  constexpr int64_t kStep = 16;
  std::memset(a.out + a.rows * line, 0, line * sizeof(float));
  parallel_for((a.rows + kStep - 1) / kStep, threads, [&](int64_t step) {
    for (int64_t y = step * kStep; y < std::min((step + 1) * kStep, a.rows); ++y) {
      const float* x = a.x + y * a.columns;
      float* out = a.out + y * line;
      int64_t last = 0;
      for (int64_t c = 0; c < 3; ++c) {
        const float scale = a.scale[c], shift = a.shift[c];
        for (int64_t i = 0; i < a.columns; ++i) out[i * 3 + c] = x[c * plane + i] * scale + shift;
        out[a.columns * 3 + c] = 0.0f;
        last = std::max(last, last_filled(x + c * plane, a.columns));
      }
      a.last[y] = static_cast<int32_t>(last);
    }
  });
}

inline int64_t strided(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

// What TensorFlow's "same" pads before the first of `size`.
inline int64_t padding_before(int64_t size, int64_t kernel, int64_t stride) {
  return std::max<int64_t>(0, (strided(size, stride) - 1) * stride + kernel - size) / 2;
}

// The value last: where it is not a number, x86 takes the last.
BIGLTL_INLINE Floats relu6(Floats value) { return min(all(6.0f), max(Floats{}, value)); }

// Depthwise convolution of kAtOnce neighbours: `lines` are the kernel's rows at the first of them, `width` floats a pixel.
template <int kKernel, int kStride, class Out>
BIGLTL_INLINE void depthwise(const float* const* lines, int64_t width, const float* weights, const float* bias, Out&& out) {
  for (int64_t c = 0; c < width; c += kLanes) {
    Floats sums[kAtOnce];
    for (auto& sum : sums) sum = load(bias + c);
    for (int ky = 0; ky < kKernel; ++ky) {
      Floats weight[kKernel];
      for (int kx = 0; kx < kKernel; ++kx) weight[kx] = load(weights + (ky * kKernel + kx) * width + c);
#pragma GCC unroll 16
      for (int x = 0; x < (kAtOnce - 1) * kStride + kKernel; ++x) {
        const Floats value = load(lines[ky] + x * width + c);
#pragma GCC unroll 4
        for (int o = 0; o < kAtOnce; ++o)
          if (x - o * kStride >= 0 && x - o * kStride < kKernel) sums[o] = fma(value, weight[x - o * kStride], sums[o]);
      }
    }
    for (int o = 0; o < kAtOnce; ++o) out(o, c, relu6(sums[o]));
  }
}

// Rows `begin` to `end` - 1 of the output.
template <class Format, int kKernel, int kStride>
void inverted_rows(const Inverted& a, int64_t begin, int64_t end) {
  static thread_local Buffer<float> ring_memory, patch_memory;
  static thread_local Buffer<uint32_t> word_memory[2];
  static thread_local Buffer<float> scale_memory[2];
  static thread_local Buffer<int32_t> shift_memory;
  const bool expands = a.expand.words != nullptr;
  const int64_t in = a.expand.in, width = round_up(a.hidden, kLanes);
  const int64_t left = padding_before(a.columns, kKernel, kStride), above = padding_before(a.rows, kKernel, kStride);
  const int64_t out_columns = a.out_columns, computed = round_up(out_columns, kAtOnce);
  const int64_t columns = std::min(a.columns, (out_columns - 1) * kStride - left + kKernel);  // that are read
  // A row of the ring: padding, the columns, padding for what is computed, and what the last tile of a product has over.
  const int64_t line = std::max(left + round_up(columns, kTile), (computed - 1) * kStride + kKernel) * width;
  const int64_t padded = round_up(std::max(columns, computed), kTile);
  float* ring = ring_memory.of(kKernel * line);
  std::memset(ring, 0, kKernel * line * sizeof(float));
  int32_t* shifts = shift_memory.of(padded);
  const int64_t in_stride = row_stride(in, Format::kValues), hidden_stride = row_stride(width, Format::kValues);
  const Rows entering{word_memory[0].of(padded * in_stride), in_stride, scale_memory[0].of(padded), shifts};
  const Rows hidden{word_memory[1].of(padded * hidden_stride), hidden_stride, scale_memory[1].of(padded), shifts};
  // After ReLU6 the range is known.
  const float levels = static_cast<float>(a.project.row_levels);
  for (int64_t x = 0; x < padded; ++x) hidden.scales[x] = 6.0f / levels;
  const Floats inverse = all(levels / 6.0f);

  const auto fill = [&](int64_t row) {  // of the expanded rows; outside the image they are zero
    float* target = ring + (row + kKernel) % kKernel * line;
    if (row < 0 || row >= a.rows) {
      std::memset(target, 0, line * sizeof(float));
      return;
    }
    target += left * width;
    const int64_t channels = a.patch == 1 ? in : in / (a.patch * a.patch);
    const float* source = a.x + row * (a.patch == 1 ? 1 : 2) * a.x_stride;
    if (!expands) {
      for (int64_t x = 0; x < columns; ++x) std::memcpy(target + x * width, source + x * in, in * sizeof(float));
      return;
    }
    for (int64_t x = 0; x < columns; ++x) {
      const float* pixel = source + x * channels;
      if (a.patch == 3) {
        float* gathered = patch_memory.of(in);
        for (int64_t ky = 0; ky < 3; ++ky)
          std::memcpy(gathered + ky * 3 * channels, source + ky * a.x_stride + 2 * x * channels, 3 * channels * sizeof(float));
        pixel = gathered;
      }
      round_row<Format>(pixel, in, a.expand.row_levels, entering, x);
    }
    multiply<Format, true>(entering, columns, a.expand, 0, 0, a.hidden, [&](int64_t x, int64_t channel, Floats value) {
      store(target + x * width + channel, relu6(value));
    });
    // Beyond the image there is padding, where the last tile has written.
    std::memset(target + columns * width, 0, (line - (left + columns) * width) * sizeof(float));
  };

  int64_t filled = begin * kStride - above;
  for (int64_t y = begin; y < end; ++y) {
    const int64_t first = y * kStride - above;
    for (filled = std::max(filled, first); filled < first + kKernel; ++filled) fill(filled);
    for (int64_t x = 0; x < out_columns; x += kAtOnce) {
      const float* lines[kKernel];
      for (int ky = 0; ky < kKernel; ++ky)
        lines[ky] = ring + (first + ky + kKernel) % kKernel * line + x * kStride * width;
      depthwise<kKernel, kStride>(lines, width, a.depthwise, a.depthwise_bias, [&](int o, int64_t c, Floats value) {
        uint32_t* words = hidden.words + (x + o) * hidden.stride;
        if constexpr (std::is_same_v<Format, Int16>)
          store_shorts(reinterpret_cast<int16_t*>(words) + c, nearest(value * inverse));
        else
          store(reinterpret_cast<float*>(words) + c, value);
      });
    }
    const int64_t channels = a.project.out;
    float* out = a.out + y * strided(a.columns, kStride) * channels;
    const float* added = a.residual ? a.x + y * a.x_stride : nullptr;
    multiply<Format, true>(hidden, out_columns, a.project, 0, 0, channels, [&](int64_t x, int64_t channel, Floats value) {
      if (x >= out_columns) return;
      const int64_t left_over = channels - channel, place = x * channels + channel;
      if (added != nullptr) value += load(added + place, left_over);
      store(out + place, value, left_over);
    });
  }
}

template <class Format, int kKernel, int kStride>
void inverted(const Inverted& a, int64_t threads) {
  const int64_t rows = a.out_rows;
  // Each strip expands kKernel - kStride rows that its neighbours expand, too.
  const int64_t strips = std::max<int64_t>(1, std::min(rows / (4 * kKernel), 4 * threads));
  const int64_t count = std::max(strips, std::min(rows, threads)), step = (rows + count - 1) / count;
  parallel_for((rows + step - 1) / step, threads, [&](int64_t strip) {
    inverted_rows<Format, kKernel, kStride>(a, strip * step, std::min((strip + 1) * step, rows));
  });
}

template <class Format>
void inverted(const Inverted& a, int64_t threads) {
  if (a.kernel == 3 && a.stride == 1) inverted<Format, 3, 1>(a, threads);
  if (a.kernel == 3 && a.stride == 2) inverted<Format, 3, 2>(a, threads);
  if (a.kernel == 5 && a.stride == 1) inverted<Format, 5, 1>(a, threads);
  if (a.kernel == 5 && a.stride == 2) inverted<Format, 5, 2>(a, threads);
}

}  // namespace
