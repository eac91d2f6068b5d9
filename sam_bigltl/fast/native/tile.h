// The register tile that every product is made of: kTile rows of activations by up to kVectors vectors of weights.
#pragma once

#include "formats.h"

namespace {

constexpr int kTile = 6;  // rows
#if BIGLTL_AVX2
constexpr int kVectors = 2;  // with kTile rows 12 sums, which with their operands fill 16 registers
#else
constexpr int kVectors = 4;  // 24 sums in 32 registers
#endif
constexpr int kPanel = kVectors * kLanes;  // columns of weights that lie together

// Loops over registers are unrolled wholly, so that no index into them is left.
#define BIGLTL_UNROLLED _Pragma("GCC unroll 8")

#if BIGLTL_I8MM
// As the next one, for Int8; `steps` is even. A vector holds two rows or two columns of 8 bytes, or sums of 2 x 2.
template <int V>
BIGLTL_INLINE void add_up(Int8, const uint32_t* a, int64_t stride, const uint32_t* b, int64_t steps,
                          const uint32_t* ahead, Ints (&found)[kTile][V]) {
  static_assert(kTile % 2 == 0);
  int32x4_t sums[kTile / 2][2 * V] = {};
  for (int64_t step = 0; step < steps; step += 2) {
    __builtin_prefetch(ahead + step * 16, 0, 2);
    __builtin_prefetch(ahead + step * 16 + 16, 0, 2);
    int8x16_t rows[kTile / 2];
    BIGLTL_UNROLLED
    for (int pair = 0; pair < kTile / 2; ++pair) {
      const uint32_t* first = a + 2 * pair * stride + step;
      rows[pair] = vreinterpretq_s8_u32(vcombine_u32(vld1_u32(first), vld1_u32(first + stride)));
    }
    BIGLTL_UNROLLED
    for (int two = 0; two < 2 * V; ++two) {
      const int8x16_t columns = vreinterpretq_s8_u32(vld1q_u32(b + step * V * kLanes + two * kLanes));
      BIGLTL_UNROLLED
      for (int pair = 0; pair < kTile / 2; ++pair) sums[pair][two] = vmmlaq_s32(sums[pair][two], rows[pair], columns);
    }
  }
  BIGLTL_UNROLLED
  for (int pair = 0; pair < kTile / 2; ++pair)
    BIGLTL_UNROLLED
    for (int v = 0; v < V; ++v) {
      const int64x2_t left = vreinterpretq_s64_s32(sums[pair][2 * v]);
      const int64x2_t right = vreinterpretq_s64_s32(sums[pair][2 * v + 1]);
      found[2 * pair][v] = (Ints)vzip1q_s64(left, right);
      found[2 * pair + 1][v] = (Ints)vzip2q_s64(left, right);
    }
}
#endif

// found[row][vector] = sum over `steps` words of a[row] . b, for a panel of V * kLanes columns.
// Meanwhile `steps` lines of the cache from `ahead` on are fetched, which a later tile will read.
template <class Format, int V>
BIGLTL_INLINE void add_up(Format, const uint32_t* a, int64_t stride, const uint32_t* b, int64_t steps,
                          const uint32_t* ahead, typename Format::Sum (&found)[kTile][V]) {
  typename Format::Sum sums[kTile][V] = {};
  for (int64_t step = 0; step < steps; ++step) {
    __builtin_prefetch(ahead + step * 16, 0, 2);
    Ints weights[V];
    BIGLTL_UNROLLED
    for (int v = 0; v < V; ++v) weights[v] = load(b + (step * V + v) * kLanes);
    BIGLTL_UNROLLED
    for (int row = 0; row < kTile; ++row) {
      const Ints activation = all(static_cast<int32_t>(a[row * stride + step]));
      BIGLTL_UNROLLED
      for (int v = 0; v < V; ++v) sums[row][v] = Format::dot(sums[row][v], activation, weights[v]);
    }
  }
  BIGLTL_UNROLLED
  for (int row = 0; row < kTile; ++row)
    BIGLTL_UNROLLED
    for (int v = 0; v < V; ++v) found[row][v] = sums[row][v];
}

// out(row, vector, sum over `steps` words of a[row] . b) for all rows and V vectors of a panel of V * kLanes columns.
template <class Format, int V, class Out>
BIGLTL_INLINE void tile_of(const uint32_t* a, int64_t stride, const uint32_t* b, int64_t steps, const uint32_t* ahead,
                           Out&& out) {
  typename Format::Sum sums[kTile][V];
  add_up(Format{}, a, stride, b, steps, ahead, sums);
  for (int row = 0; row < kTile; ++row)
    for (int v = 0; v < V; ++v) out(row, v, sums[row][v]);
}

// The same with the number of vectors known at run time only, 1 to kVectors.
template <class Format, class Out>
BIGLTL_INLINE void tile(int64_t vectors, const uint32_t* a, int64_t stride, const uint32_t* b, int64_t steps,
                        const uint32_t* ahead, Out&& out) {
  switch (vectors) {
    case 1: return tile_of<Format, 1>(a, stride, b, steps, ahead, out);
#if !BIGLTL_AVX2
    case 2: return tile_of<Format, 2>(a, stride, b, steps, ahead, out);
    case 3: return tile_of<Format, 3>(a, stride, b, steps, ahead, out);
#endif
    default: return tile_of<Format, kVectors>(a, stride, b, steps, ahead, out);
  }
}

}  // namespace
