// Symmetric 8-bit rounding of activations with one scale a tensor, and LayerNorm with it, in two passes over the values.
#include "vectors.h"

#include <omp.h>

#include <algorithm>

namespace {

constexpr int64_t kMaxThreads = 256;

// Levels are -127 to 127, stored with 128 added as unsigned bytes.
void round_values(const uint16_t* x, int64_t count, float inverse, uint8_t* levels) {
  const __m512 factor = _mm512_set1_ps(inverse);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = lanes_below(count - i);
    const __m512i level = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(x + i, mask), factor));
    _mm_mask_storeu_epi8(levels + i, mask, _mm512_cvtepi32_epi8(_mm512_add_epi32(level, _mm512_set1_epi32(128))));
  }
}

float largest(const uint16_t* x, int64_t count) {
  __m512 found = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16)
    found = _mm512_max_ps(found, _mm512_abs_ps(load_bf16(x + i, lanes_below(count - i))));
  return _mm512_reduce_max_ps(found);
}

// y = LayerNorm(x) of one row; returns the largest |y|.
float normalise(const uint16_t* x, int64_t width, const uint16_t* weight, const uint16_t* bias, float eps, uint16_t* y) {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), found = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += 16) sum = _mm512_add_ps(sum, load_bf16(x + c, lanes_below(width - c)));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
  for (int64_t c = 0; c < width; c += 16) {
    const __mmask16 mask = lanes_below(width - c);
    const __m512 centred = _mm512_maskz_sub_ps(mask, load_bf16(x + c, mask), mean);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps));
  for (int64_t c = 0; c < width; c += 16) {
    const __mmask16 mask = lanes_below(width - c);
    const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(load_bf16(x + c, mask), mean), factor);
    const __m512 value = _mm512_fmadd_ps(normal, load_bf16(weight + c, mask), load_bf16(bias + c, mask));
    store_bf16(y + c, value, mask);
    found = _mm512_mask_max_ps(found, mask, found, _mm512_abs_ps(value));
  }
  return _mm512_reduce_max_ps(found);
}

}  // namespace

extern "C" {

// x (rows, width) -> levels of the same shape; returns the scale. With `weight` and `bias` x is normalised first, and
// `normal`, of the same shape, takes the result.
float bigltl_quantize(const uint16_t* x, int64_t rows, int64_t width, const uint16_t* weight, const uint16_t* bias,
                      float eps, uint16_t* normal, uint8_t* levels, int64_t threads) {
  float found[kMaxThreads] = {};
  float scale = 1.0f;
  threads = std::min(threads, kMaxThreads);
#pragma omp parallel num_threads(threads)
  {
    float own = 0.0f;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      own = std::max(own, weight == nullptr ? largest(x + row * width, width)
                                            : normalise(x + row * width, width, weight, bias, eps, normal + row * width));
    found[omp_get_thread_num()] = own;
#pragma omp barrier
#pragma omp single
    {
      const float most = *std::max_element(found, found + threads);
      scale = most > 0.0f ? most / 127.0f : 1.0f;
    }
    const uint16_t* source = weight == nullptr ? x : normal;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      round_values(source + row * width, width, 1.0f / scale, levels + row * width);
  }
  return scale;
}

}  // extern "C"
