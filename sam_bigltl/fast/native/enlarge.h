// Low-resolution logits to masks of the photograph's size: SAM's two bilinear interpolations, only where a mask can be.
#pragma once

#include "parallel.h"
#include "rows.h"

namespace {

// One interpolation along one axis: result[i] = source[index[i]] * weights[2 i] + source[index[i] + 1] * weights[2 i + 1].
struct Axis {
  const int32_t* index;
  const float* weights;
  int64_t size;
};

// Mirrors `_Enlarge` of native/enlarge.py.
struct Enlarge {
  const float* logits;  // (count, rows, columns)
  int64_t count, rows, columns;
  Axis rows1, columns1;  // to the model's frame
  Axis rows2, columns2;  // from the photograph's part of it to the photograph
  float threshold;
  uint8_t* masks;  // (count, rows2.size, columns2.size), zero
};

struct Span {
  int64_t begin, end;
};

// Results of `axis` that read sources of `span`.
inline Span reached(const Axis& axis, Span span) {
  Span found{0, axis.size};
  while (found.begin < found.end && axis.index[found.begin] + 1 < span.begin) ++found.begin;
  while (found.end > found.begin && axis.index[found.end - 1] >= span.end) --found.end;
  return found;
}

// Sources that results `span` of `axis` read.
inline Span read_by(const Axis& axis, Span span) {
  return {axis.index[span.begin], axis.index[span.end - 1] + 2};
}

// Interpolates a line of sources, of which `from` is the first, to the results of `span`.
inline void along(const float* source, int64_t from, const Axis& axis, Span span, float* out) {
  for (int64_t i = span.begin; i < span.end; ++i) {
    const float* place = source + axis.index[i] - from;
    out[i - span.begin] = place[0] * axis.weights[2 * i] + place[1] * axis.weights[2 * i + 1];
  }
}

inline void across(const float* a, const float* b, const float* weights, int64_t count, float* out) {
  const float weight_a = weights[0], weight_b = weights[1];
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * weight_a + b[i] * weight_b;
}

// The part of a mask's logits outside which none is above the threshold.
inline void extent(const float* logits, int64_t rows, int64_t columns, float threshold, Span& tall, Span& wide) {
  tall = {rows, 0}, wide = {columns, 0};
  for (int64_t y = 0; y < rows; ++y) {
    const float* line = logits + y * columns;
    int64_t begin = 0, end = columns;
    while (begin < end && !(line[begin] > threshold)) ++begin;
    while (end > begin && !(line[end - 1] > threshold)) --end;
    if (begin == end) continue;
    tall = {std::min(tall.begin, y), y + 1};
    wide = {std::min(wide.begin, begin), std::max(wide.end, end)};
  }
}

inline void enlarge(const Enlarge& a, int64_t threads) {
  constexpr int64_t kStep = 16;  // rows that one thread takes at a time
  const int64_t steps = (a.rows2.size + kStep - 1) / kStep;
  std::vector<Span> tall(a.count), wide(a.count);
  for (int64_t m = 0; m < a.count; ++m) {
    Span rows, columns;
    extent(a.logits + m * a.rows * a.columns, a.rows, a.columns, a.threshold, rows, columns);
    tall[m] = rows.begin < rows.end ? reached(a.rows2, reached(a.rows1, rows)) : Span{0, 0};
    wide[m] = rows.begin < rows.end ? reached(a.columns2, reached(a.columns1, columns)) : Span{0, 0};
  }
  parallel_for(a.count * steps, threads, [&](int64_t task) {
    const int64_t m = task / steps, first = task % steps * kStep;
    const Span rows{std::max(first, tall[m].begin), std::min(first + kStep, tall[m].end)}, columns = wide[m];
    if (rows.begin >= rows.end || columns.begin >= columns.end) return;
    static thread_local Buffer<float> memory;
    const Span frame = read_by(a.columns2, columns), low = read_by(a.columns1, frame);  // columns
    const int64_t width = frame.end - frame.begin, narrow = low.end - low.begin, wanted = columns.end - columns.begin;
    // Rows of the frame on either side of a row of the mask, from two rows of logits each: interpolated along, then
    // across, in torch's order.
    float* lines = memory.of(2 * width + 2 * width + 2 * wanted + wanted + narrow);
    float *low_lines[2] = {lines, lines + width}, *frame_lines[2] = {lines + 2 * width, lines + 3 * width};
    float *out_lines[2] = {lines + 4 * width, lines + 4 * width + wanted}, *out = lines + 4 * width + 2 * wanted;
    const float* logits = a.logits + m * a.rows * a.columns;
    int64_t low_at[2] = {-1, -1}, frame_at[2] = {-1, -1};
    const auto low_line = [&](int64_t y) {  // of logits, as wide as the frame
      const int64_t slot = y & 1;
      if (low_at[slot] != y) {
        along(logits + y * a.columns + low.begin, low.begin, a.columns1, frame, low_lines[slot]);
        low_at[slot] = y;
      }
      return low_lines[slot];
    };
    const auto frame_line = [&](int64_t y) {  // of the frame, as wide as the mask
      const int64_t slot = y & 1;
      if (frame_at[slot] != y) {
        const int64_t above = a.rows1.index[y];
        const float* upper = low_line(above);
        across(upper, low_line(above + 1), a.rows1.weights + 2 * y, width, frame_lines[slot]);
        along(frame_lines[slot], frame.begin, a.columns2, columns, out_lines[slot]);
        frame_at[slot] = y;
      }
      return out_lines[slot];
    };
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const int64_t above = a.rows2.index[y];
      const float* upper = frame_line(above);
      across(upper, frame_line(above + 1), a.rows2.weights + 2 * y, wanted, out);
      uint8_t* mask = a.masks + (m * a.rows2.size + y) * a.columns2.size + columns.begin;
      for (int64_t x = 0; x < wanted; ++x) mask[x] = out[x] > a.threshold;
    }
  });
}

}  // namespace
