// Every kernel, for one level of instructions: compiled once for each, with -DBIGLTL_LEVEL=<name> and the flags of the
// level. The parts are headers, so that all of them are compiled for the same level in one unit.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "block.h"
#include "draw.h"
#include "enlarge.h"
#include "inverted.h"
#include "linear.h"
#include "neighbours.h"
#include "peak.h"
#include "window.h"

#define BIGLTL_JOIN(a, b, c) a##b##c
#define BIGLTL_NAMED(level, name) BIGLTL_JOIN(bigltl_##level, _, name)
#define BIGLTL_FUNCTION(name) BIGLTL_NAMED_IN(BIGLTL_LEVEL, name)
#define BIGLTL_NAMED_IN(level, name) BIGLTL_NAMED(level, name)
#if defined(_WIN32)
#define BIGLTL_EXPORT extern "C" __declspec(dllexport)
#else
#define BIGLTL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Calls `use` with the format named `format`; returns whether this level has it.
template <class Use>
bool with_format(int32_t format, Use use) {
  switch (format) {
    case kFloat32: use(Float32{}); return true;
    case kInt16: use(Int16{}); return true;
#if BIGLTL_INT8
    case kInt8: use(Int8{}); return true;
#endif
#if BIGLTL_BFLOAT16
    case kBfloat16: use(Bfloat16{}); return true;
#endif
    default: return false;
  }
}

// Calls `use` with an Activation as a constant.
template <class Use>
void with_activation(int32_t activation, Use use) {
  switch (activation) {
    case kGelu: return use(std::integral_constant<int32_t, kGelu>{});
    case kRelu: return use(std::integral_constant<int32_t, kRelu>{});
    default: return use(std::integral_constant<int32_t, kNone>{});
  }
}

}  // namespace

// Whether the level has products of a format.
BIGLTL_EXPORT int32_t BIGLTL_FUNCTION(has)(int32_t format) {
  return with_format(format, [](auto) {});
}

// Steps on each side of zero that activations in bytes may have; 0 where the level multiplies no bytes.
BIGLTL_EXPORT int32_t BIGLTL_FUNCTION(byte_levels)() {
#if BIGLTL_INT8
  return Int8::kLevels;
#else
  return 0;
#endif
}

// 32-bit words that packed weights take, and the number of their scales.
BIGLTL_EXPORT int64_t BIGLTL_FUNCTION(packed_words)(const Packed* p) {
  int64_t words = 0;
  with_format(p->format, [&](auto format) {
    words = (p->in + p->chunk - 1) / p->chunk * chunk_words<decltype(format)>(*p);
  });
  return words;
}
BIGLTL_EXPORT int64_t BIGLTL_FUNCTION(packed_scales)(const Packed* p) { return packed_columns(*p); }

// weights (out, in) and the bias (out) or null -> p->words, p->scales, p->bias.
BIGLTL_EXPORT void BIGLTL_FUNCTION(pack)(const float* weights, const float* bias, const Packed* p) {
  with_format(p->format, [&](auto format) { pack_weights<decltype(format)>(weights, bias, *p); });
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(linear)(const Linear* a, int64_t threads) {
  with_format(a->weights.format, [&](auto format) {
    using Format = decltype(format);
    with_activation(a->activation, [&](auto kind) {
      if (a->half) linear<Format, uint16_t, kind>(*a, threads);
      else linear<Format, float, kind>(*a, threads);
    });
  });
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(attend)(const Attention* a, int64_t threads) {
  if (a->format == kInt16) {
    if (a->half) attend<Int16, uint16_t>(*a, threads);
    else attend<Int16, float>(*a, threads);
  } else {
    if (a->half) attend<Float32, uint16_t>(*a, threads);
    else attend<Float32, float>(*a, threads);
  }
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(finish)(const Finish* a, int64_t threads) {
  with_format(a->proj.format, [&](auto format) {
    using Format = decltype(format);
    with_activation(a->activation, [&](auto kind) { finish<Format, kind>(*a, threads); });
  });
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(windows)(const Window* a, int64_t threads) {
  with_format(a->qkv.format, [&](auto format) {
    using Format = decltype(format);
    if (a->format == kInt16) run_windows<Format, Int16>(*a, threads);
    else run_windows<Format, Float32>(*a, threads);
  });
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(prepare)(const Pixels* a, int64_t threads) { prepare(*a, threads); }

BIGLTL_EXPORT void BIGLTL_FUNCTION(inverted)(const Inverted* a, int64_t threads) {
  if (a->project.format == kInt16) inverted<Int16>(*a, threads);
  else inverted<Float32>(*a, threads);
}

BIGLTL_EXPORT void BIGLTL_FUNCTION(draw)(const Draw* a, int64_t threads) { draw(*a, threads); }

BIGLTL_EXPORT void BIGLTL_FUNCTION(enlarge)(const Enlarge* a, int64_t threads) { enlarge(*a, threads); }

BIGLTL_EXPORT void BIGLTL_FUNCTION(convolve)(const Neighbours* a, int64_t threads) {
  if (a->lines[0].format == kInt16) convolve<Int16>(*a, threads);
  else convolve<Float32>(*a, threads);
}

// Multiply-accumulates a second of a format's register tile on operands in the first level cache, by as many threads for
// as many milliseconds: what no product of this level can surpass. 0 where the level does not have the format.
BIGLTL_EXPORT double BIGLTL_FUNCTION(peak)(int64_t format, int64_t threads, int64_t milliseconds) {
  double rate = 0.0;
  with_format(static_cast<int32_t>(format), [&](auto kind) { rate = peak<decltype(kind)>(threads, milliseconds); });
  return rate;
}
