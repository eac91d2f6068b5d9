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

// out(row, vector, sum over `steps` words of a[row] . b) for all rows and V vectors of a panel of V * kLanes columns.
// Meanwhile `steps` lines of the cache from `ahead` on are fetched, which a later tile will read.
template <class Format, int V, class Out>
BIGLTL_INLINE void tile_of(const uint32_t* a, int64_t stride, const uint32_t* b, int64_t steps, const uint32_t* ahead,
                           Out&& out) {
  typename Format::Sum sums[kTile][V] = {};
  for (int64_t step = 0; step < steps; ++step) {
    __builtin_prefetch(ahead + step * 16, 0, 2);
    Ints weights[V];
    for (int v = 0; v < V; ++v) weights[v] = load(b + (step * V + v) * kLanes);
    for (int row = 0; row < kTile; ++row) {
      const Ints activation = all(static_cast<int32_t>(a[row * stride + step]));
      for (int v = 0; v < V; ++v) sums[row][v] = Format::dot(sums[row][v], activation, weights[v]);
    }
  }
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
