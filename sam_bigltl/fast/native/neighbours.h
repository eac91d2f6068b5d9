// The end of SAM's neck: a norm, a 3 x 3 convolution and another norm. With a pixel of padding on every side, three
// pixels that lie together are one row of a product, and each of the kernel's rows has a product of its own.
#pragma once

#include "linear.h"

namespace {

struct Norm {
  const float *weight, *bias;
  float eps;
};

// Mirrors `_Neighbours` of native/ends.py.
struct Neighbours {
  const float* x;  // (rows, columns, channels); channels a multiple of kLanes
  int64_t rows, columns, channels;
  Norm before, after;
  Packed lines[3];
  float* out;  // (lines[0].out, rows, columns)
};

template <class Format>
void convolve(const Neighbours& a, int64_t threads) {
  static thread_local Buffer<float> normed_memory;
  static thread_local Buffer<uint32_t> rounded_memory;
  const int64_t width = a.columns + 2, line = width * a.channels, stride = a.channels / Format::kValues;
  float* normed = normed_memory.of((a.rows + 2) * line + kTile * a.channels);
  std::memset(normed, 0, line * sizeof(float));
  std::memset(normed + (a.rows + 1) * line, 0, line * sizeof(float));
  parallel_for(a.rows, threads, [&](int64_t y) {
    float* target = normed + (y + 1) * line;
    std::memset(target, 0, a.channels * sizeof(float));
    for (int64_t x = 0; x < a.columns; ++x)
      normalise(a.x + (y * a.columns + x) * a.channels, a.channels, a.before.weight, a.before.bias, a.before.eps,
                target + (x + 1) * a.channels);
    std::memset(target + (a.columns + 1) * a.channels, 0, a.channels * sizeof(float));
  });
  const uint32_t* words = reinterpret_cast<const uint32_t*>(normed);
  float scale = 1.0f;
  if constexpr (std::is_same_v<Format, Int16>) {  // once for all, by one scale
    uint32_t* rounded = rounded_memory.of(((a.rows + 2) * width + kTile) * stride);
    scale = scale_of(magnitude_of(normed, (a.rows + 2) * line), static_cast<float>(a.lines[0].row_levels));
    const Floats inverse = all(1.0f / scale);
    parallel_for(a.rows + 2, threads, [&](int64_t y) {
      for (int64_t i = y * line; i < (y + 1) * line; i += kLanes)
        store_shorts(reinterpret_cast<int16_t*>(rounded) + i, nearest(load(normed + i) * inverse));
    });
    words = rounded;
  }
  const int64_t wanted = a.rows * width - 2, channels = a.lines[0].out, step = block_rows(wanted, threads);
  parallel_for((wanted + step - 1) / step, threads, [&](int64_t block) {
    static thread_local Buffer<float> scales, sums;
    const int64_t first = block * step, rows = std::min(step, wanted - first), padded = round_up(rows, kTile);
    const int64_t apart = round_up(channels, kLanes) + kLanes;
    std::fill_n(scales.of(padded), padded, scale);
    float* total = sums.of(padded * apart);
    for (int64_t ky = 0; ky < 3; ++ky) {
      Rows source{};
      source.words = const_cast<uint32_t*>(words) + (first + ky * width) * stride;
      source.stride = stride;
      source.scales = scales.of(padded);
      multiply<Format, true>(source, rows, a.lines[ky], 0, 0, channels, [&](int64_t r, int64_t channel, Floats value) {
        float* place = total + r * apart + channel;
        store(place, ky == 0 ? value : value + load(place));
      });
    }
    for (int64_t r = 0; r < rows; ++r)
      normalise(total + r * apart, channels, a.after.weight, a.after.bias, a.after.eps, total + r * apart);
    for (int64_t r = 0, count; r < rows; r += count) {  // line by line, without the last two of each, which are of no use
      const int64_t y = (first + r) / width, x = (first + r) % width;
      count = std::min(rows - r, width - x);
      const int64_t kept = std::min(count, a.columns - x);
      for (int64_t channel = 0; channel < channels; ++channel) {
        float* out = a.out + (channel * a.rows + y) * a.columns + x;
        for (int64_t i = 0; i < kept; ++i) out[i] = total[(r + i) * apart + channel];
      }
    }
  });
}

}  // namespace
