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

// exp(x) for x <= 88, to 3e-7 relative; below -87 it is 0.
BIGLTL_INLINE Floats exponential(Floats x) {
  const Floats bounded = max(x, all(-87.0f));
  const Ints whole = nearest(bounded * all(1.44269504f));
  const Floats steps = real(whole);
  Floats part = fma(steps, all(-0.693359375f), bounded);  // in [-0.35, 0.35]; ln 2 in two parts (Cody and Waite)
  part = fma(steps, all(2.12194440e-4f), part);
  // Taylor series of exp.
  Floats value = all(1.0f / 720);
  value = fma(value, part, all(1.0f / 120));
  value = fma(value, part, all(1.0f / 24));
  value = fma(value, part, all(1.0f / 6));
  value = fma(value, part, all(0.5f));
  value = fma(value, part, all(1.0f));
  value = fma(value, part, all(1.0f));
  const Floats power = (Floats)((whole + all(127)) << 23);
  return (Floats)((Ints)(value * power) & (Ints)(x > all(-87.0f)));
}

// x times the normal distribution's share below x; erf as Abramowitz and Stegun 7.1.26, to 1.5e-7.
BIGLTL_INLINE Floats gelu(Floats x) {
  const Floats scaled = magnitude(x) * all(0.70710678f);
  const Floats t = all(1.0f) / fma(scaled, all(0.3275911f), all(1.0f));
  Floats value = all(1.061405429f);
  value = fma(value, t, all(-1.453152027f));
  value = fma(value, t, all(1.421413741f));
  value = fma(value, t, all(-0.284496736f));
  value = fma(value, t, all(0.254829592f));
  const Floats tail = value * t * exponential(-(scaled * scaled)) * all(0.5f);  // the share above |x|
  const Ints negative = (Ints)(x < all(0.0f));
  const Floats share = (Floats)(((Ints)tail & negative) | ((Ints)(all(1.0f) - tail) & ~negative));
  return x * share;
}

}  // namespace
