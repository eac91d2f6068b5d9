// Rows of activations: LayerNorm, and rounding to the words of a format.
#pragma once

#include "formats.h"

namespace {

// Memory of one thread that grows when it has to and is kept for the next call.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete[](block_, std::align_val_t(64)); }

  T* of(int64_t count) {
    if (count > capacity_) {
      ::operator delete[](block_, std::align_val_t(64));
      block_ = nullptr;
      block_ = ::operator new[](count * sizeof(T) + 64, std::align_val_t(64));  // vectors may read beyond the last
      capacity_ = count;
    }
    return static_cast<T*>(block_);
  }

 private:
  void* block_ = nullptr;
  int64_t capacity_ = 0;
};

// y = LayerNorm(x) of one row of `width`; x and y may be the same.
inline void normalise(const float* x, int64_t width, const float* weight, const float* bias, float eps, float* y) {
  Floats total{}, squares{};
  for (int64_t c = 0; c < width; c += kLanes) total += load(x + c, width - c);
  const Floats mean = all(sum(total) / width);
  for (int64_t c = 0; c < width; c += kLanes) {
    Floats centred = load(x + c, width - c) - mean;
    if (width - c < kLanes)
      for (int64_t i = width - c; i < kLanes; ++i) centred[i] = 0.0f;
    squares = fma(centred, centred, squares);
  }
  const Floats factor = all(1.0f / std::sqrt(sum(squares) / width + eps));
  for (int64_t c = 0; c < width; c += kLanes) {
    const int64_t left = width - c;
    store(y + c, fma((load(x + c, left) - mean) * factor, load(weight + c, left), load(bias + c, left)), left);
  }
}

template <class T>
float magnitude_of(const T* x, int64_t count) {
  Floats found{};
  for (int64_t c = 0; c < count; c += kLanes) found = max(found, magnitude(load(x + c, count - c)));
  return largest(found);
}

inline float scale_of(float most, float levels) { return most > 0.0f ? most / levels : 1.0f; }

// Rows as words, `stride` words apart. Values are scale * level; `shift` is taken off the product before scaling.
struct Rows {
  uint32_t* words;
  int64_t stride;
  float* scales;
  int32_t* shifts;
};

inline int64_t words_of(int64_t values, int per_word) { return (values + per_word - 1) / per_word; }

// Words that a row of `values` takes; not a multiple of 4 KB apart, or rows would fall onto the same lines of the cache.
inline int64_t row_stride(int64_t values, int per_word) { return round_up(words_of(values, per_word), 16) + 16; }

// Row `row` of `rows` from x (count), with at most `levels` steps on each side of zero (integers only).
template <class Format, class T>
BIGLTL_INLINE void round_row(const T* x, int64_t count, int32_t levels, const Rows& rows, int64_t row) {
  uint32_t* words = rows.words + row * rows.stride;
  if constexpr (std::is_same_v<Format, Float32>) {
    for (int64_t c = 0; c < count; c += kLanes) store(reinterpret_cast<float*>(words) + c, load(x + c, count - c));
    return;
  }
#if BIGLTL_BFLOAT16
  if constexpr (std::is_same_v<Format, Bfloat16>) {
    for (int64_t c = 0; c < count; c += kLanes)
      _mm256_storeu_si256((__m256i*)(words + c / 2), (__m256i)_mm512_cvtneps_pbh((__m512)load(x + c, count - c)));
    return;
  }
#endif
  const float scale = scale_of(magnitude_of(x, count), static_cast<float>(levels));
  rows.scales[row] = scale;
  const Floats inverse = all(1.0f / scale);
  Ints total{};
  for (int64_t c = 0; c < count; c += kLanes) {
    const Ints level = nearest(load(x + c, count - c) * inverse);
    if constexpr (std::is_same_v<Format, Int16>) {
      store_shorts(reinterpret_cast<int16_t*>(words) + c, level);
    } else {
      total += level;
      store_bytes(reinterpret_cast<int8_t*>(words) + c, level);
    }
  }
#if BIGLTL_INT8
  if constexpr (std::is_same_v<Format, Int8>) rows.shifts[row] = Int8::kShift * sum(total);
#endif
}

}  // namespace
