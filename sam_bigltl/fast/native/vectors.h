// Vectors of the level that is compiled: GCC's and Clang's vector extension, whose operators work on every processor, and
// the few instructions that have no operator. A half is an IEEE 754 binary16 kept in a uint16_t.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#define BIGLTL_INLINE inline __attribute__((always_inline))

// With BIGLTL_256 a processor with AVX-512 computes in the vectors that AVX2 has.
#if defined(__AVX512F__) && !defined(BIGLTL_256)
#define BIGLTL_AVX512 1
constexpr int kLanes = 16;
#elif defined(__AVX2__)
#define BIGLTL_AVX2 1
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

namespace {

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

BIGLTL_INLINE Floats all(float value) { return value - Floats{}; }
BIGLTL_INLINE Ints all(int32_t value) { return value - Ints{}; }

BIGLTL_INLINE Floats load(const float* source) {
  Floats value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

BIGLTL_INLINE Ints load(const uint32_t* source) {
  Ints value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

BIGLTL_INLINE void store(float* target, Floats value) { std::memcpy(target, &value, sizeof value); }
BIGLTL_INLINE void store(uint32_t* target, Ints value) { std::memcpy(target, &value, sizeof value); }

// The first `count` lanes, zeros after them. For any count, also above kLanes.
BIGLTL_INLINE Floats load(const float* source, int64_t count) {
  if (count >= kLanes) return load(source);
  Floats value{};
  for (int64_t i = 0; i < count; ++i) value[i] = source[i];
  return value;
}

BIGLTL_INLINE void store(float* target, Floats value, int64_t count) {
  if (count >= kLanes) return store(target, value);
  for (int64_t i = 0; i < count; ++i) target[i] = value[i];
}

#if BIGLTL_AVX512

BIGLTL_INLINE Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
BIGLTL_INLINE Floats max(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
BIGLTL_INLINE Floats min(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
BIGLTL_INLINE Ints nearest(Floats a) { return (Ints)_mm512_cvtps_epi32((__m512)a); }
BIGLTL_INLINE Floats real(Ints a) { return (Floats)_mm512_cvtepi32_ps((__m512i)a); }
BIGLTL_INLINE float sum(Floats a) { return _mm512_reduce_add_ps((__m512)a); }
BIGLTL_INLINE float largest(Floats a) { return _mm512_reduce_max_ps((__m512)a); }
BIGLTL_INLINE Floats load(const uint16_t* half) { return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)half)); }
BIGLTL_INLINE void store(uint16_t* half, Floats value) {
  _mm256_storeu_si256((__m256i*)half, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
BIGLTL_INLINE void store_bytes(int8_t* target, Ints value) {
  _mm_storeu_si128((__m128i*)target, _mm512_cvtepi32_epi8((__m512i)value));
}
BIGLTL_INLINE void store_shorts(int16_t* target, Ints value) {
  _mm256_storeu_si256((__m256i*)target, _mm512_cvtepi32_epi16((__m512i)value));
}
// As shorts, those of `low` first.
BIGLTL_INLINE Ints join_shorts(Ints low, Ints high) {
  const __m512i first = _mm512_castsi256_si512(_mm512_cvtepi32_epi16((__m512i)low));
  return (Ints)_mm512_inserti64x4(first, _mm512_cvtepi32_epi16((__m512i)high), 1);
}

#elif BIGLTL_AVX2

BIGLTL_INLINE Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
BIGLTL_INLINE Floats max(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
BIGLTL_INLINE Floats min(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
BIGLTL_INLINE Ints nearest(Floats a) { return (Ints)_mm256_cvtps_epi32((__m256)a); }
BIGLTL_INLINE Floats real(Ints a) { return (Floats)_mm256_cvtepi32_ps((__m256i)a); }
BIGLTL_INLINE float sum(Floats a) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
BIGLTL_INLINE float largest(Floats a) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
BIGLTL_INLINE Floats load(const uint16_t* half) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)half)); }
BIGLTL_INLINE void store(uint16_t* half, Floats value) {
  _mm_storeu_si128((__m128i*)half, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
}
BIGLTL_INLINE __m128i shorts(Ints value) {
  return _mm_packs_epi32(_mm256_castsi256_si128((__m256i)value), _mm256_extracti128_si256((__m256i)value, 1));
}
BIGLTL_INLINE void store_bytes(int8_t* target, Ints value) {
  const __m128i eight = shorts(value);
  _mm_storel_epi64((__m128i*)target, _mm_packs_epi16(eight, eight));
}
BIGLTL_INLINE void store_shorts(int16_t* target, Ints value) { _mm_storeu_si128((__m128i*)target, shorts(value)); }
BIGLTL_INLINE Ints join_shorts(Ints low, Ints high) {
  return (Ints)_mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)low, (__m256i)high), 0xd8);
}

#else

BIGLTL_INLINE Floats fma(Floats a, Floats b, Floats c) { return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
BIGLTL_INLINE Floats max(Floats a, Floats b) { return (Floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
BIGLTL_INLINE Floats min(Floats a, Floats b) { return (Floats)vminq_f32((float32x4_t)a, (float32x4_t)b); }
BIGLTL_INLINE Ints nearest(Floats a) { return (Ints)vcvtnq_s32_f32((float32x4_t)a); }
BIGLTL_INLINE Floats real(Ints a) { return (Floats)vcvtq_f32_s32((int32x4_t)a); }
BIGLTL_INLINE float sum(Floats a) { return vaddvq_f32((float32x4_t)a); }
BIGLTL_INLINE float largest(Floats a) { return vmaxvq_f32((float32x4_t)a); }
BIGLTL_INLINE Floats load(const uint16_t* half) {
  return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half)));
}
BIGLTL_INLINE void store(uint16_t* half, Floats value) {
  vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)value)));
}
BIGLTL_INLINE void store_bytes(int8_t* target, Ints value) {
  const int16x4_t four = vmovn_s32((int32x4_t)value);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(four, four));
  std::memcpy(target, &bytes, 4);
}
BIGLTL_INLINE void store_shorts(int16_t* target, Ints value) { vst1_s16(target, vmovn_s32((int32x4_t)value)); }
BIGLTL_INLINE Ints join_shorts(Ints low, Ints high) {
  return (Ints)vcombine_s16(vmovn_s32((int32x4_t)low), vmovn_s32((int32x4_t)high));
}

#endif

BIGLTL_INLINE Floats load(const uint16_t* half, int64_t count) {
  if (count >= kLanes) return load(half);
  uint16_t some[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = half[i];
  return load(some);
}

BIGLTL_INLINE void store(uint16_t* half, Floats value, int64_t count) {
  if (count >= kLanes) return store(half, value);
  uint16_t some[kLanes];
  store(some, value);
  for (int64_t i = 0; i < count; ++i) half[i] = some[i];
}

BIGLTL_INLINE Floats magnitude(Floats a) { return (Floats)((Ints)a & all(0x7fffffff)); }

BIGLTL_INLINE int32_t sum(Ints a) {
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += a[i];
  return total;
}

// 2^x for x <= 126; below -126 it is 2^-126. To 3e-7 relative, or to 5e-6 where `Precise` is not asked for.
template <bool Precise>
BIGLTL_INLINE Floats power_of_two(Floats x) {
  const Floats bounded = max(x, all(-126.0f));
  const Ints whole = nearest(bounded);
  const Floats part = bounded - real(whole);  // in [-0.5, 0.5]
  // Taylor series of 2^part.
  Floats value;
  if constexpr (Precise) {
    value = fma(all(1.54035304e-4f), part, all(1.33335581e-3f));
    value = fma(value, part, all(9.61812911e-3f));
  } else {
    value = all(9.61812911e-3f);
  }
  value = fma(value, part, all(5.55041087e-2f));
  value = fma(value, part, all(2.40226507e-1f));
  value = fma(value, part, all(6.93147181e-1f));
  value = fma(value, part, all(1.0f));
  return (Floats)((Ints)value + (whole << 23));
}

constexpr float kLog2E = 1.44269504f;

// x times the normal distribution's share below x. erf as Abramowitz and Stegun 7.1.26, to 1.5e-7.
BIGLTL_INLINE Floats gelu(Floats x) {
  const Floats scaled = magnitude(x) * all(0.70710678f);
  const Floats t = all(1.0f) / fma(scaled, all(0.3275911f), all(1.0f));
  Floats value = all(1.061405429f);
  value = fma(value, t, all(-1.453152027f));
  value = fma(value, t, all(1.421413741f));
  value = fma(value, t, all(-0.284496736f));
  value = fma(value, t, all(0.254829592f));
  const Floats tail = value * t * power_of_two<true>(scaled * scaled * all(-kLog2E)) * all(0.5f);  // the share above |x|
  const Ints negative = (Ints)(x < all(0.0f));
  const Floats share = (Floats)(((Ints)tail & negative) | ((Ints)(all(1.0f) - tail) & ~negative));
  return x * share;
}

// The same to 2e-4: the polynomial in x with the least largest error on [-4, 4]. For what is rounded to 8 bits next.
BIGLTL_INLINE Floats rough_gelu(Floats x) {
  const Floats bounded = min(max(x, all(-4.0f)), all(4.0f)), square = bounded * bounded;
  Floats value = all(2.27814537e-8f);
  value = fma(value, square, all(-1.59860291e-6f));
  value = fma(value, square, all(4.79555283e-5f));
  value = fma(value, square, all(-8.14015527e-4f));
  value = fma(value, square, all(8.77238836e-3f));
  value = fma(value, square, all(-6.45731103e-2f));
  value = fma(value, square, all(3.97883349e-1f));
  return x * fma(value, bounded, all(0.5f));
}

// Words of kLanes rows become words of kLanes columns.
BIGLTL_INLINE void transpose(Ints (&rows)[kLanes]) {
#if BIGLTL_AVX512
  for (int i = 0; i < 16; i += 2) {
    const __m512i a = (__m512i)rows[i], b = (__m512i)rows[i + 1];
    rows[i] = (Ints)_mm512_unpacklo_epi32(a, b), rows[i + 1] = (Ints)_mm512_unpackhi_epi32(a, b);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = i; j < i + 2; ++j) {
      const __m512i a = (__m512i)rows[j], b = (__m512i)rows[j + 2];
      rows[j] = (Ints)_mm512_unpacklo_epi64(a, b), rows[j + 2] = (Ints)_mm512_unpackhi_epi64(a, b);
    }
  // Rows i + {0, 2, 1, 3} now hold columns {0, 1, 2, 3} of each 128 bits, of rows i to i + 3.
  Ints lanes[16];
  for (int c = 0; c < 4; ++c) {
    const int place = (c & 1) * 2 + (c >> 1);
    const __m512i a = (__m512i)rows[place], b = (__m512i)rows[4 + place];
    const __m512i d = (__m512i)rows[8 + place], e = (__m512i)rows[12 + place];
    const __m512i low = _mm512_shuffle_i32x4(a, b, 0x88), high = _mm512_shuffle_i32x4(a, b, 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(d, e, 0x88), high2 = _mm512_shuffle_i32x4(d, e, 0xdd);
    lanes[c] = (Ints)_mm512_shuffle_i32x4(low, low2, 0x88), lanes[8 + c] = (Ints)_mm512_shuffle_i32x4(low, low2, 0xdd);
    lanes[4 + c] = (Ints)_mm512_shuffle_i32x4(high, high2, 0x88);
    lanes[12 + c] = (Ints)_mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = lanes[i];
#elif BIGLTL_AVX2
  Ints lanes[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256i a = (__m256i)rows[i], b = (__m256i)rows[i + 1], c = (__m256i)rows[i + 2], d = (__m256i)rows[i + 3];
    const __m256i ab = _mm256_unpacklo_epi32(a, b), ab2 = _mm256_unpackhi_epi32(a, b);
    const __m256i cd = _mm256_unpacklo_epi32(c, d), cd2 = _mm256_unpackhi_epi32(c, d);
    lanes[i] = (Ints)_mm256_unpacklo_epi64(ab, cd), lanes[i + 1] = (Ints)_mm256_unpackhi_epi64(ab, cd);
    lanes[i + 2] = (Ints)_mm256_unpacklo_epi64(ab2, cd2), lanes[i + 3] = (Ints)_mm256_unpackhi_epi64(ab2, cd2);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = (Ints)_mm256_permute2x128_si256((__m256i)lanes[i], (__m256i)lanes[i + 4], 0x20);
    rows[i + 4] = (Ints)_mm256_permute2x128_si256((__m256i)lanes[i], (__m256i)lanes[i + 4], 0x31);
  }
#else
  const int32x4x2_t ab = vtrnq_s32((int32x4_t)rows[0], (int32x4_t)rows[1]);
  const int32x4x2_t cd = vtrnq_s32((int32x4_t)rows[2], (int32x4_t)rows[3]);
  rows[0] = (Ints)vcombine_s32(vget_low_s32(ab.val[0]), vget_low_s32(cd.val[0]));
  rows[1] = (Ints)vcombine_s32(vget_low_s32(ab.val[1]), vget_low_s32(cd.val[1]));
  rows[2] = (Ints)vcombine_s32(vget_high_s32(ab.val[0]), vget_high_s32(cd.val[0]));
  rows[3] = (Ints)vcombine_s32(vget_high_s32(ab.val[1]), vget_high_s32(cd.val[1]));
#endif
}

}  // namespace
