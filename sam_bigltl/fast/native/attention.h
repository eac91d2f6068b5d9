// Windowed and global attention with SAM's decomposed relative positions.
//
// Queries are ragged: every window has as many as were selected in it. Keys and values are read where the linear layers
// left them (two tables: big tokens, little tokens), so nothing is gathered, padded or scattered outside. Logits are
// float32 and live in cache only: blocks of queries meet chunks of keys with a running maximum and sum
// (FlashAttention, arXiv 2205.14135). Products are float32, or of 16-bit integers with 12 bits a side and exact sums.
#pragma once

#include "parallel.h"
#include "rows.h"
#include "tile.h"

namespace {

constexpr int64_t kChunk = 512;  // keys at a time: their logits and packed rows stay in the second level cache
constexpr int64_t kQueries = 48;  // of one block; a multiple of kTile
constexpr int64_t kChannels = 256, kSize = 256;  // largest d and `size`
constexpr float kNever = -1e30f;  // logit of a key that does not exist
constexpr float kValueLevels = 2047.0f;  // of 16-bit values; with kWeightTotal their products fit 31 bits
constexpr float kWeightTotal = 1 << 19;  // of 16-bit weights, all of a chunk

// Mirrors `_Attention` of native/ops.py. Tables hold T: floats or halves.
struct Attention {
  const void* q;  // (queries, heads * d), rows q_stride apart
  int64_t q_stride;
  const void* big;  // rows 0 to num_big - 1 of the key table: heads * d keys, then heads * d values
  int64_t big_stride, num_big;
  const void* little;  // the rows after them
  int64_t little_stride;
  const void* padding;  // the row -1: what a padded place of a window holds
  const int32_t* keys;  // (windows, key_rows * key_columns) rows of the table
  const int32_t* starts;  // (windows + 1): queries of window w are queries[starts[w]] to queries[starts[w + 1] - 1]
  const int32_t* queries;
  const float *table_h, *table_w;  // relative positions, (2 * size - 1, d), distance 0 at size - 1; null: none
  const int32_t *rows, *columns;  // of each query, inside its window
  int64_t size, key_rows, key_columns, windows, heads, d;
  float scale;
  float* out;  // (queries, heads * d), rows out_stride apart
  int64_t out_stride;
  int32_t half;  // whether T is half
  int32_t format;  // kFloat32 or kInt16
};

// Levels on each side of zero with which a sum of `count` products stays below 2^30.
inline float levels_for(int64_t count) { return std::floor(std::sqrt(static_cast<float>(1 << 30) / count)); }

// Sizes that follow from a problem. A chunk holds whole rows of the key grid.
template <class Format>
struct Plan {
  int64_t num_keys, chunk_rows, chunk_keys, chunks, padded_keys, d_words, d_pad, key_words, chunk_words, head_words;
  int64_t distances, table_words;
  float levels;
  explicit Plan(const Attention& a) {
    num_keys = a.key_rows * a.key_columns;
    chunk_rows = std::min(a.key_rows, std::max<int64_t>(1, kChunk / a.key_columns));
    chunk_keys = chunk_rows * a.key_columns;
    chunks = (a.key_rows + chunk_rows - 1) / chunk_rows;
    padded_keys = round_up(chunk_keys, kLanes);
    d_words = words_of(a.d, Format::kValues);
    d_pad = round_up(a.d, kLanes);
    key_words = padded_keys * d_words;
    chunk_words = key_words + padded_keys / Format::kValues * d_pad + 2;  // and the scales of keys and values
    head_words = chunks * chunk_words;
    distances = a.table_h == nullptr ? 0 : round_up(2 * a.size - 1, kLanes);
    table_words = distances == 0 ? 0 : distances * d_words + 1;  // and its scale
    levels = std::min(levels_for(a.d), 32767.0f);
  }
};

template <class T>
const T* table_row(const Attention& a, int32_t row) {
  if (row < 0) return static_cast<const T*>(a.padding);
  return row < a.num_big ? static_cast<const T*>(a.big) + row * a.big_stride
                         : static_cast<const T*>(a.little) + (row - a.num_big) * a.little_stride;
}

// One value or the level nearest to it, in the low half of a word.
template <class Format>
BIGLTL_INLINE Ints as_word(Floats value, Floats inverse) {
  if constexpr (std::is_same_v<Format, Float32>) return (Ints)value;
  return nearest(value * inverse);
}

// The words from number `first` on of a row of d channels; zeros after the last.
template <class Format, class T>
BIGLTL_INLINE Ints words_at(const T* row, int64_t d, int64_t first, Floats inverse) {
  const int64_t c = first * Format::kValues;
  const Ints low = as_word<Format>(load(row + c, d - c), inverse);
  if constexpr (std::is_same_v<Format, Float32>) return low;
  const int64_t left = std::max<int64_t>(d - c - kLanes, 0);
  return join_shorts(low, left == 0 ? Ints{} : as_word<Format>(load(row + c + kLanes, left), inverse));
}

template <class Format, class Row>
float common_scale(int64_t d, int64_t count, Row row, float levels) {
  if constexpr (std::is_same_v<Format, Float32>) return 1.0f;
  Floats most{};
  for (int64_t i = 0; i < count; ++i) {
    const auto* source = row(i);
    // The same channels of the next head, which lie far from those of the next key.
    for (int64_t c = 0; c < d; c += 64 / sizeof *source) __builtin_prefetch(source + d + c);
    for (int64_t c = 0; c < d; c += kLanes) most = max(most, magnitude(load(source + c, d - c)));
  }
  return scale_of(largest(most), levels);
}

// `count` rows of d channels as weights of `tile`, [panel of kPanel rows][word][row], the last row repeated up to a
// multiple of kLanes. Returns their scale.
template <class Format, class Row>
float pack_rows(int64_t d, int64_t count, Row row, float levels, uint32_t* packed) {
  const int64_t words = words_of(d, Format::kValues), padded = round_up(count, kLanes);
  const float scale = common_scale<Format>(d, count, row, levels);
  const Floats inverse = all(1.0f / scale);
  for (int64_t first = 0; first < padded; first += kLanes) {
    const int64_t panel = first / kPanel * kPanel, width = std::min<int64_t>(kPanel, padded - panel);
    uint32_t* target = packed + panel * words + first - panel;
    for (int64_t w = 0; w < words; w += kLanes) {
      Ints block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = words_at<Format>(row(std::min(first + i, count - 1)), d, w, inverse);
      transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, words - w); ++i) store(target + (w + i) * width, block[i]);
    }
  }
  return scale;
}

// `count` rows of d channels as weights of `tile` for sums over rows, [panel of kPanel channels][word of rows][channel].
// Rows up to a multiple of kLanes repeat the last one. Returns their scale.
template <class Format, class Row>
float pack_columns(int64_t d, int64_t d_pad, int64_t count, Row row, float levels, uint32_t* packed) {
  constexpr int kPer = Format::kValues;
  const int64_t words = round_up(count, kLanes) / kPer;
  const float scale = common_scale<Format>(d, count, row, levels);
  const Floats inverse = all(1.0f / scale);
  for (int64_t w = 0; w < words; ++w) {
    const auto* even = row(std::min(w * kPer, count - 1));
    const auto* odd = row(std::min(w * kPer + kPer - 1, count - 1));
    for (int64_t c = 0; c < d_pad; c += kLanes) {
      const int64_t panel = c / kPanel * kPanel, width = std::min<int64_t>(kPanel, d_pad - panel);
      Ints value = as_word<Format>(load(even + c, std::max<int64_t>(d - c, 0)), inverse);
      if constexpr (kPer == 2)
        value = (value & all(0xffff)) | (as_word<Format>(load(odd + c, std::max<int64_t>(d - c, 0)), inverse) << 16);
      store(packed + panel * words + w * width + c - panel, value);
    }
  }
  return scale;
}

// Keys and values of one head of one window.
template <class Format, class T>
void pack_keys(const Attention& a, const Plan<Format>& plan, int64_t window, int64_t head, uint32_t* packed) {
  const int64_t width = a.heads * a.d;
  const int32_t* keys = a.keys + window * plan.num_keys;
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk, packed += plan.chunk_words) {
    const int64_t first = chunk * plan.chunk_keys, count = std::min(plan.chunk_keys, plan.num_keys - first);
    const auto key = [&](int64_t i) { return table_row<T>(a, keys[first + i]) + head * a.d; };
    const auto value = [&](int64_t i) { return key(i) + width; };
    const float scales[2] = {
        pack_rows<Format>(a.d, count, key, plan.levels, packed),
        pack_columns<Format>(a.d, plan.d_pad, count, value, kValueLevels, packed + plan.key_words),
    };
    std::memcpy(packed + plan.chunk_words - 2, scales, sizeof scales);
  }
}

inline float float_at(const uint32_t* place) {
  float value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

struct Block {
  alignas(64) float logits[kQueries * (kChunk + kLanes)];
  // q . relative position, distances in falling order, so that keys in a row are in rising order.
  alignas(64) float distance_h[kQueries * 2 * kSize], distance_w[kQueries * 2 * kSize];
  alignas(64) float bias[kChunk + kLanes];
  alignas(64) float out[kQueries * kChannels];
  alignas(64) uint32_t q[kQueries * (kChannels + 32)];
  alignas(64) int16_t weights[kQueries * (kChunk + kLanes)];
  float q_scales[kQueries], weight_scales[kQueries], maximum[kQueries], total[kQueries];
  int32_t shifts[kQueries];
};

// The bias of one query of a block for the keys of a chunk.
template <class Format>
void fill_bias(const Attention& a, const Plan<Format>& plan, Block& block, int64_t row, int64_t query,
               int64_t first_row, int64_t num_rows) {
  const float* down = block.distance_h + row * plan.distances + a.size - 1 - a.rows[query] + first_row;
  const float* across = block.distance_w + row * plan.distances + a.size - 1 - a.columns[query];
  for (int64_t r = 0; r < num_rows; ++r) {
    const Floats line = all(down[r]);
    float* target = block.bias + r * a.key_columns;
    for (int64_t c = 0; c < a.key_columns; c += kLanes)  // may write into the next row, which comes later
      store(target + c, line + load(across + c));
  }
}

// Turns a row of logits, to which `bias` is added where `Bias`, into weights of the running softmax, and scales what was
// summed before. Logits are in base 2.
template <class Format, bool Bias>
void soften(Block& block, int64_t row, int64_t count, int64_t stride, int64_t d_pad, bool first) {
  float* logits = block.logits + row * stride;
  const int64_t num_keys = round_up(count, kLanes);
  Floats highest = all(kNever);
  std::fill(logits + count, logits + num_keys, kNever);
  for (int64_t key = 0; key < num_keys; key += kLanes) {
    Floats value = load(logits + key);
    if constexpr (Bias) {
      value += load(block.bias + key);
      store(logits + key, value);
    }
    highest = max(highest, value);
  }
  const float before = block.maximum[row];
  const float maximum = first ? largest(highest) : std::max(before, largest(highest));
  const Floats shift = all(maximum);
  Floats totals{};
  for (int64_t key = 0; key < num_keys; key += kLanes) {
    const Floats weight = power_of_two<std::is_same_v<Format, Float32>>(load(logits + key) - shift);
    totals += weight;
    store(logits + key, weight);
  }
  const float total = sum(totals);
  block.total[row] = total + (first ? 0.0f : block.total[row] * std::exp2(before - maximum));
  if constexpr (std::is_same_v<Format, Int16>) {
    const float levels = std::min(32767.0f, kWeightTotal / total);
    block.weight_scales[row] = 1.0f / levels;
    int16_t* weights = block.weights + row * stride;
    for (int64_t key = 0; key < num_keys; key += kLanes)
      store_shorts(weights + key, nearest(load(logits + key) * all(levels)));
  }
  if (!first && maximum > before) {
    const Floats factor = all(std::exp2(before - maximum));
    float* out = block.out + row * d_pad;
    for (int64_t c = 0; c < d_pad; c += kLanes) store(out + c, factor * load(out + c));
  }
  block.maximum[row] = maximum;
}

// Queries `begin` to `end` - 1 of the sorted list, which all belong to the packed window and head.
template <class Format, class T>
void attend_block(const Attention& a, const Plan<Format>& plan, const uint32_t* tables, const uint32_t* packed,
                  int64_t head, int64_t begin, int64_t end, Block& block) {
  const int64_t count = end - begin, padded = round_up(count, kTile), stride = plan.padded_keys + kLanes;
  const Rows q{block.q, round_up(plan.d_words, 16) + 16, block.q_scales, block.shifts};
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t query = a.queries[begin + std::min(i, count - 1)];
    const T* row = static_cast<const T*>(a.q) + query * a.q_stride + head * a.d;
    round_row<Format>(row, a.d, static_cast<int32_t>(plan.levels), q, i);
    if constexpr (std::is_same_v<Format, Float32>) block.q_scales[i] = 1.0f;
  }
  std::fill(block.out, block.out + padded * plan.d_pad, 0.0f);
  for (int64_t side = 0; side < (tables == nullptr ? 0 : 2); ++side) {
    float* distances = side == 0 ? block.distance_h : block.distance_w;
    const uint32_t* table = tables + side * plan.table_words;
    const float scale = float_at(table + plan.table_words - 1);
    for (int64_t place = 0; place < plan.distances; place += kPanel)
      for (int64_t i = 0; i < padded; i += kTile)
        tile<Format>(std::min<int64_t>(kVectors, (plan.distances - place) / kLanes), q.words + i * q.stride, q.stride,
                     table + place * plan.d_words, plan.d_words, table, [&](int r, int v, auto total) {
                       store(distances + (i + r) * plan.distances + place + v * kLanes,
                             real(total) * all(block.q_scales[i + r] * scale * kLog2E));
                     });
  }
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk, packed += plan.chunk_words) {
    const int64_t first_row = chunk * plan.chunk_rows, num_rows = std::min(plan.chunk_rows, a.key_rows - first_row);
    const int64_t num_keys = round_up(num_rows * a.key_columns, kLanes);
    const float key_scale = a.scale * kLog2E * float_at(packed + plan.chunk_words - 2);
    const float value_scale = float_at(packed + plan.chunk_words - 1);
    const uint32_t* values = packed + plan.key_words;
    for (int64_t key = 0; key < num_keys; key += kPanel)
      for (int64_t i = 0; i < padded; i += kTile)
        tile<Format>(std::min<int64_t>(kVectors, (num_keys - key) / kLanes), q.words + i * q.stride, q.stride,
                     packed + key * plan.d_words, plan.d_words, packed, [&](int r, int v, auto total) {
                       float* place = block.logits + (i + r) * stride + key + v * kLanes;
                       store(place, real(total) * all(block.q_scales[i + r] * key_scale));
                     });
    for (int64_t i = 0; i < padded; ++i) {
      if (tables == nullptr) {
        soften<Format, false>(block, i, num_rows * a.key_columns, stride, plan.d_pad, chunk == 0);
      } else {
        fill_bias(a, plan, block, i, a.queries[begin + std::min(i, count - 1)], first_row, num_rows);
        soften<Format, true>(block, i, num_rows * a.key_columns, stride, plan.d_pad, chunk == 0);
      }
    }
    constexpr bool kWhole = std::is_same_v<Format, Float32>;
    const uint32_t* weights = kWhole ? reinterpret_cast<const uint32_t*>(block.logits)
                                     : reinterpret_cast<const uint32_t*>(block.weights);
    const int64_t weight_stride = stride / Format::kValues, words = num_keys / Format::kValues;
    for (int64_t c = 0; c < plan.d_pad; c += kPanel)
      for (int64_t i = 0; i < padded; i += kTile)
        tile<Format>(std::min<int64_t>(kVectors, (plan.d_pad - c) / kLanes), weights + i * weight_stride, weight_stride,
                     values + c * words, words, values, [&](int r, int v, auto total) {
                       float* place = block.out + (i + r) * plan.d_pad + c + v * kLanes;
                       const float scale = kWhole ? 1.0f : block.weight_scales[i + r] * value_scale;
                       store(place, fma(real(total), all(scale), load(place)));
                     });
  }
  for (int64_t i = 0; i < count; ++i) {
    const Floats factor = all(1.0f / block.total[i]);
    float* out = a.out + a.queries[begin + i] * a.out_stride + head * a.d;
    for (int64_t c = 0; c < a.d; c += kLanes) store(out + c, factor * load(block.out + i * plan.d_pad + c), a.d - c);
  }
}

inline Block& own_block() {
  static thread_local Buffer<Block> block;
  return *block.of(1);
}

// Both tables of relative positions; null where there are none.
template <class Format>
const uint32_t* pack_tables(const Attention& a, const Plan<Format>& plan, uint32_t* packed) {
  if (a.table_h == nullptr) return nullptr;
  for (int64_t side = 0; side < 2; ++side) {
    const float* table = side == 0 ? a.table_h : a.table_w;
    const auto row = [&](int64_t i) { return table + (2 * a.size - 2 - i) * a.d; };  // in falling order
    const float scale = pack_rows<Format>(a.d, 2 * a.size - 1, row, plan.levels, packed);
    std::memcpy(packed + plan.table_words - 1, &scale, sizeof scale);
    packed += plan.table_words;
  }
  return packed - 2 * plan.table_words;
}

template <class Format, class T>
void attend(const Attention& a, int64_t threads) {
  static thread_local Buffer<uint32_t> shared;
  const Plan<Format> plan(a);
  const int64_t problems = a.windows * a.heads;
  const bool apart = a.windows >= 4 * threads;  // one thread does a whole window
  uint32_t* scratch = shared.of(2 * plan.table_words + (apart ? 0 : problems * plan.head_words));
  const uint32_t* tables = pack_tables(a, plan, scratch);
  uint32_t* all_packed = scratch + 2 * plan.table_words;
  if (apart) {
    parallel_for(a.windows, threads, [&](int64_t window) {
      static thread_local Buffer<uint32_t> own;
      const int64_t begin = a.starts[window], end = a.starts[window + 1];
      if (begin == end) return;
      uint32_t* packed = own.of(plan.head_words);
      for (int64_t head = 0; head < a.heads; ++head) {
        pack_keys<Format, T>(a, plan, window, head, packed);
        for (int64_t i = begin; i < end; i += kQueries)
          attend_block<Format, T>(a, plan, tables, packed, head, i, std::min(end, i + kQueries), own_block());
      }
    });
    return;
  }
  // Few windows: threads share the queries of each.
  int64_t most = 0;
  for (int64_t window = 0; window < a.windows; ++window)
    most = std::max<int64_t>(most, a.starts[window + 1] - a.starts[window]);
  const int64_t blocks = (most + kQueries - 1) / kQueries;
  parallel_for(problems, threads, [&](int64_t problem) {
    pack_keys<Format, T>(a, plan, problem / a.heads, problem % a.heads, all_packed + problem * plan.head_words);
  });
  parallel_for(problems * blocks, threads, [&](int64_t task) {
    const int64_t problem = task / blocks, window = problem / a.heads;
    const int64_t begin = a.starts[window] + task % blocks * kQueries;
    const int64_t end = std::min<int64_t>(a.starts[window + 1], begin + kQueries);
    if (begin < end)
      attend_block<Format, T>(a, plan, tables, all_packed + problem * plan.head_words, problem % a.heads, begin, end,
                              own_block());
  });
}

}  // namespace
