// Small pieces of AVX512-BF16 that the kernels share. A bfloat16 is a uint16_t here.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// The first `count` of 16 lanes.
inline __mmask16 lanes_below(int64_t count) {
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
}

inline float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline __m512 load_bf16(const uint16_t* source, __mmask16 mask = 0xffff) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source)), 16));
}

inline void store_bf16(uint16_t* target, __m512 value, __mmask16 mask = 0xffff) {
  _mm256_mask_storeu_epi16(target, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

// exp(x) for x <= 0, to 1e-5 relative: what is rounded to bfloat16 next needs no more. Far below, 0.
inline __m512 exponential(__m512 x) {
  const __m512 power = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(-150.0f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(power, whole);  // in [-0.5, 0.5]
  // Taylor series of 2^part.
  __m512 value = _mm512_set1_ps(0.00961813f);
  value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(0.05550411f));
  value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(0.24022651f));
  value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(0.69314718f));
  value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(value, whole);
}
