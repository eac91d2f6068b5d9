// What the register tile reaches at best.
#pragma once

#include <atomic>
#include <chrono>

#include "parallel.h"
#include "tile.h"

namespace {

// See `bigltl_<level>_peak`. The best of many short spells, in each of which every thread does the same work.
template <class Format>
double peak(int64_t threads, int64_t milliseconds) {
  constexpr int64_t kSteps = 64, kStride = kSteps + 16, kRounds = 2000;
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); };
  const auto start = Clock::now();
  double best = 0.0;
  std::atomic<float> sink{0.0f};
  do {
    const auto begin = Clock::now();
    parallel_for(threads, threads, [&](int64_t) {
      alignas(64) uint32_t a[kTile * kStride] = {}, b[kPanel * kSteps] = {};
      Floats total{};
      for (int64_t round = 0; round < kRounds; ++round)
        tile_of<Format, kVectors>(a, kStride, b, kSteps, b, [&](int, int, auto sum) { total += real(sum); });
      sink.store(sum(total), std::memory_order_relaxed);
    });
    const double products = static_cast<double>(threads) * kRounds * kSteps * Format::kValues * kTile * kPanel;
    best = std::max(best, products / seconds(begin));
  } while (seconds(start) * 1000 < static_cast<double>(milliseconds));
  return best;
}

}  // namespace
