// Products of rows with the packed weights of a linear layer.
#pragma once

#include "rows.h"
#include "tile.h"

namespace {

// Weights (out, in) in the layout of `tile`; mirrors `_Packed` of native/ops.py. The sum over `in` may be cut into chunks
// of `chunk` inputs, each of which is whole: [chunk][panel of kPanel outputs][word][output].
struct Packed {
  uint32_t* words;
  float* scales;  // of each output
  float* bias;  // of each output; zeros where the layer has none
  int64_t in, out, chunk;
  int32_t format;
  int32_t weight_levels, row_levels;  // steps on each side of zero, of weights and of activations
};

inline int64_t packed_columns(const Packed& p) { return round_up(p.out, kLanes); }

template <class Format>
int64_t chunk_words(const Packed& p) {
  return words_of(p.chunk, Format::kValues) * packed_columns(p);
}

// Calls out(row, column, kLanes sums from that column on, with the bias where `Bias`) for columns `begin`, a multiple of kPanel,
// to `end` - 1 of a chunk. Rows are rounded up to a multiple of kTile.
template <class Format, bool Bias, class Out>
BIGLTL_INLINE void multiply(const Rows& a, int64_t rows, const Packed& p, int64_t chunk, int64_t begin, int64_t end,
                            Out&& out) {
  const int64_t inputs = std::min(p.chunk, p.in - chunk * p.chunk), steps = words_of(inputs, Format::kValues);
  const uint32_t* words = p.words + chunk * chunk_words<Format>(p);
  for (int64_t column = begin; column < end; column += kPanel) {
    const int64_t vectors = std::min<int64_t>(kVectors, round_up(end - column, kLanes) / kLanes);
    const uint32_t* panel = words + column * steps;
    for (int64_t row = 0, fetched = kPanel; row < rows; row += kTile, fetched += 16)
      tile<Format>(vectors, a.words + row * a.stride, a.stride, panel, steps, panel + fetched * steps, [&](int r, int v, auto total) {
        Floats value;
        if constexpr (std::is_same_v<decltype(total), Ints>) {
          if constexpr (Format::kValues == 4) total -= all(a.shifts[row + r]);
          const Floats scale = all(a.scales[row + r]) * load(p.scales + column + v * kLanes);
          value = Bias ? fma(real(total), scale, load(p.bias + column + v * kLanes)) : real(total) * scale;
        } else {
          value = Bias ? total + load(p.bias + column + v * kLanes) : total;
        }
        out(row + r, column + v * kLanes, value);
      });
  }
}

// A word of weights.
template <class Format>
uint32_t word_of(const float* values, float inverse) {
  uint32_t word = 0;
  if constexpr (std::is_same_v<Format, Float32>) {
    std::memcpy(&word, values, sizeof word);
  } else if constexpr (std::is_same_v<Format, Int16>) {
    for (int i = 0; i < 2; ++i)
      word |= static_cast<uint32_t>(static_cast<uint16_t>(std::lrint(values[i] * inverse))) << (16 * i);
  }
#if BIGLTL_BFLOAT16
  if constexpr (std::is_same_v<Format, Bfloat16>) {
    const __m128bh both = _mm_cvtneps_pbh(_mm_setr_ps(values[0], values[1], 0.0f, 0.0f));
    std::memcpy(&word, &both, sizeof word);
  }
#endif
#if BIGLTL_INT8
  if constexpr (std::is_same_v<Format, Int8>)
    for (int i = 0; i < 4; ++i)
      word |= static_cast<uint32_t>(static_cast<uint8_t>(std::lrint(values[i] * inverse) + Int8::kShift)) << (8 * i);
#endif
  return word;
}

// weights (out, in), row by row, and the bias or null -> p.words, p.scales and p.bias, which are given.
template <class Format>
void pack_weights(const float* weights, const float* bias, const Packed& p) {
  constexpr int kPer = Format::kValues;
  for (int64_t o = 0; o < packed_columns(p); ++o) {
    const float* row = weights + o * p.in;
    p.bias[o] = o < p.out && bias != nullptr ? bias[o] : 0.0f;
    p.scales[o] = o < p.out ? scale_of(magnitude_of(row, p.in), static_cast<float>(p.weight_levels)) : 1.0f;
  }
  for (int64_t first = 0; first < p.in; first += p.chunk) {
    const int64_t inputs = std::min(p.chunk, p.in - first), steps = words_of(inputs, kPer);
    uint32_t* words = p.words + first / p.chunk * chunk_words<Format>(p);
    for (int64_t column = 0; column < packed_columns(p); column += kPanel) {
      const int64_t width = std::min<int64_t>(kPanel, packed_columns(p) - column);
      for (int64_t step = 0; step < steps; ++step)
        for (int64_t c = 0; c < width; ++c) {
          const int64_t o = column + c;
          float values[kPer] = {};
          for (int i = 0; i < kPer; ++i)
            if (o < p.out && step * kPer + i < inputs) values[i] = weights[o * p.in + first + step * kPer + i];
          words[column * steps + step * width + c] = word_of<Format>(values, 1.0f / p.scales[o]);
        }
    }
  }
}

}  // namespace
