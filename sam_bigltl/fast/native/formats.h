// Number formats of products. A word has 32 bits and holds `kValues` neighbours along the sum; `dot` adds, lane by lane,
// the product of a word of activations (the same in all lanes) with words of weights.
#pragma once

#include "vectors.h"

namespace {

enum FormatId : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt16 = 3 };

struct Float32 {
  static constexpr int kValues = 1;
  using Sum = Floats;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) { return fma((Floats)activation, (Floats)weight, total); }
};

// 16-bit integers, exact in 32-bit sums as long as levels of both sides are bounded for it.
struct Int16 {
  static constexpr int kValues = 2;
  using Sum = Ints;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) {
#if BIGLTL_AVX512 && defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)total, (__m512i)activation, (__m512i)weight);
#elif BIGLTL_AVX512
    return total + (Ints)_mm512_madd_epi16((__m512i)activation, (__m512i)weight);
#elif defined(__AVX512VNNI__)
    return (Ints)_mm256_dpwssd_epi32((__m256i)total, (__m256i)activation, (__m256i)weight);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)activation, (__m256i)weight);
#elif BIGLTL_AVX2
    return total + (Ints)_mm256_madd_epi16((__m256i)activation, (__m256i)weight);
#else
    const int16x8_t a = (int16x8_t)activation, w = (int16x8_t)weight;
    return total + (Ints)vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(w)), vmull_high_s16(a, w));
#endif
  }
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define BIGLTL_INT8 1
// The processor multiplies unsigned by signed bytes: weights are stored with kShift added, and kShift times the sum of
// the activations is taken off afterwards.
struct Int8 {
  static constexpr int kValues = 4, kShift = 128, kLevels = 127;
  using Sum = Ints;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) {
#if BIGLTL_AVX512
    return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weight, (__m512i)activation);
#elif defined(__AVX512VNNI__)
    return (Ints)_mm256_dpbusd_epi32((__m256i)total, (__m256i)weight, (__m256i)activation);
#else
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)weight, (__m256i)activation);
#endif
  }
};
#elif BIGLTL_AVX2 || BIGLTL_AVX512
#define BIGLTL_INT8 1
// As above; products are summed in pairs of 16 bits, which hold 2 * 255 * kLevels.
struct Int8 {
  static constexpr int kValues = 4, kShift = 128, kLevels = 64;
  using Sum = Ints;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) {
#if BIGLTL_AVX512
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)weight, (__m512i)activation);
    return total + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)weight, (__m256i)activation);
    return total + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
#define BIGLTL_INT8 1
struct Int8 {
  static constexpr int kValues = 4, kShift = 0, kLevels = 127;
  using Sum = Ints;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) {
    return (Ints)vdotq_s32((int32x4_t)total, (int8x16_t)activation, (int8x16_t)weight);
  }
};
#endif

#if BIGLTL_AVX512 && defined(__AVX512BF16__)
#define BIGLTL_BFLOAT16 1
struct Bfloat16 {
  static constexpr int kValues = 2;
  using Sum = Floats;
  static BIGLTL_INLINE Sum dot(Sum total, Ints activation, Ints weight) {
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)activation, (__m512bh)weight);
  }
};
#endif

BIGLTL_INLINE Floats real(Floats a) { return a; }

BIGLTL_INLINE int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace
