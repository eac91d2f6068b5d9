// Windowed and global attention with SAM's decomposed relative positions, for CPUs with AVX512-BF16.
//
// Queries are ragged: every window has as many as were selected in it. Keys and values are read where the linear layers
// left them (two tables: big tokens, little tokens), so nothing is gathered, padded or scattered outside. Logits are
// float32 and live in cache only: blocks of queries meet chunks of keys with a running maximum and sum
// (FlashAttention, arXiv 2205.14135).
#include "vectors.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace {

constexpr int64_t kChunk = 512;  // keys at a time: their logits and packed rows stay in the second level cache
constexpr int64_t kQueries = 48;  // of one block; a multiple of kTile
constexpr int kTile = 6;  // queries by 64 keys (or channels): 24 accumulators, which with their operands fill the registers
constexpr int64_t kChannels = 256, kSize = 256;  // largest d and `size`
constexpr float kNever = -1e30f;  // logit of a key that does not exist

// Mirrors `_Attention` of native/ops.py.
struct Attention {
  const uint16_t* q;  // (queries, heads * d), rows q_stride apart
  int64_t q_stride;
  const uint16_t* big;  // rows 0 to num_big - 1 of the key table: heads * d keys, then heads * d values
  int64_t big_stride, num_big;
  const uint16_t* little;  // the rows after them
  int64_t little_stride;
  const uint16_t* padding;  // the row -1: what a padded place of a window holds
  const int32_t* keys;  // (windows, key_rows * key_columns) rows of the table
  const int32_t* starts;  // (windows + 1): queries of window w are queries[starts[w]] to queries[starts[w + 1] - 1]
  const int32_t* queries;
  const uint16_t *table_h, *table_w;  // relative positions, (2 * size - 1, d), distance 0 at size - 1; null: none
  const int32_t *rows, *columns;  // of each query, inside its window
  int64_t size, key_rows, key_columns, windows, heads, d;
  float scale;
  uint16_t* out;  // (queries, heads * d), rows out_stride apart
  int64_t out_stride;
};

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sizes that follow from a problem. A chunk holds whole rows of the key grid.
struct Plan {
  int64_t num_keys, chunk_rows, chunk_keys, chunks, chunk_stride, d_pad, head_stride, distances, table_stride;
  explicit Plan(const Attention& a) {
    num_keys = a.key_rows * a.key_columns;
    chunk_rows = std::min(a.key_rows, std::max<int64_t>(1, kChunk / a.key_columns));
    chunk_keys = chunk_rows * a.key_columns;
    chunks = (a.key_rows + chunk_rows - 1) / chunk_rows;
    chunk_stride = round_up(chunk_keys, 16);
    d_pad = round_up(a.d, 16);
    // Packed keys (d / 2 pairs of channels) and packed values (pairs of keys), in 32-bit words.
    head_stride = chunks * chunk_stride * (a.d / 2 + d_pad / 2);
    distances = a.table_h == nullptr ? 0 : round_up(2 * a.size - 1, 16);
    table_stride = distances * a.d / 2;  // of a packed table
  }
};

const uint16_t* table_row(const Attention& a, int32_t row) {
  if (row < 0) return a.padding;
  return row < a.num_big ? a.big + row * a.big_stride : a.little + (row - a.num_big) * a.little_stride;
}

// `count` rows of d channels as [block of 64 rows][pair of channels][row], rounded up to 16 rows by repeating the last.
template <class Row>
void pack_rows(int64_t d, int64_t count, Row row, uint32_t* packed) {
  const int64_t pairs = d / 2, padded = round_up(count, 16);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(pairs)));
  alignas(64) uint32_t rows[16 * kChannels / 2];
  for (int64_t first = 0; first < padded; first += 16) {
    for (int64_t i = 0; i < 16; ++i)
      std::memcpy(rows + i * pairs, row(std::min(first + i, count - 1)), d * sizeof(uint16_t));
    const int64_t block = first / 64 * 64, width = std::min<int64_t>(64, padded - block);
    for (int64_t p = 0; p < pairs; ++p)
      _mm512_storeu_si512(packed + block * pairs + p * width + first - block,
                          _mm512_i32gather_epi32(index, rows + p, 4));
  }
}

// One head of one window: keys by `pack_rows`, values as [pair of keys][channel].
void pack(const Attention& a, const Plan& plan, int64_t window, int64_t head, uint32_t* packed) {
  const int64_t pairs = a.d / 2, width = a.heads * a.d;
  const int32_t* keys = a.keys + window * plan.num_keys;
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const int64_t first = chunk * plan.chunk_keys;
    const int64_t count = std::min(plan.chunk_keys, plan.num_keys - first), padded = round_up(count, 16);
    uint32_t* packed_keys = packed + chunk * plan.chunk_stride * (pairs + plan.d_pad / 2);
    uint32_t* packed_values = packed_keys + plan.chunk_stride * pairs;
    const auto key_row = [&](int64_t key) { return table_row(a, keys[first + key]) + head * a.d; };
    pack_rows(a.d, count, key_row, packed_keys);
    for (int64_t key = 0; key < padded; key += 2) {
      // A key beyond the last has weight 0, but its value must be a number: the last one again.
      const uint16_t* even = key_row(std::min(key, count - 1)) + width;
      const uint16_t* odd = key_row(std::min(key + 1, count - 1)) + width;
      for (int64_t c = 0; c < plan.d_pad; c += 16) {
        const __mmask16 mask = lanes_below(a.d - c);
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + c));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + c));
        _mm512_storeu_si512(packed_values + key / 2 * plan.d_pad + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
}

// logits[kTile][16 * V] = scale * q keys^T + logits
template <int V>
void score(const uint32_t* const* q, const uint32_t* keys, int64_t pairs, float scale, float* logits, int64_t stride) {
  __m512 sum[kTile][V];
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    __m512bh key[V];
    for (int v = 0; v < V; ++v) key[v] = (__m512bh)_mm512_loadu_si512(keys + p * 16 * V + 16 * v);
    for (int r = 0; r < kTile; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(q[r][p]);
      for (int v = 0; v < V; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], pair, key[v]);
    }
  }
  const __m512 factor = _mm512_set1_ps(scale);
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) {
      float* place = logits + r * stride + 16 * v;
      _mm512_storeu_ps(place, _mm512_fmadd_ps(sum[r][v], factor, _mm512_loadu_ps(place)));
    }
}

// The same for up to 64 packed keys.
void score_keys(const uint32_t* const* q, const uint32_t* keys, int64_t num_keys, int64_t pairs, float scale,
                float* logits, int64_t stride) {
  switch (num_keys / 16) {
    case 1: return score<1>(q, keys, pairs, scale, logits, stride);
    case 2: return score<2>(q, keys, pairs, scale, logits, stride);
    case 3: return score<3>(q, keys, pairs, scale, logits, stride);
    default: return score<4>(q, keys, pairs, scale, logits, stride);
  }
}

// out[kTile][16 * V] += weights values
template <int V>
void mix(const uint16_t* weights, int64_t stride, const uint32_t* values, int64_t num_keys, int64_t d_pad, float* out) {
  __m512 sum[kTile][V];
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_loadu_ps(out + r * d_pad + 16 * v);
  for (int64_t key = 0; key < num_keys; key += 2) {
    __m512bh value[V];
    for (int v = 0; v < V; ++v) value[v] = (__m512bh)_mm512_loadu_si512(values + key / 2 * d_pad + 16 * v);
    for (int r = 0; r < kTile; ++r) {
      int32_t two;
      std::memcpy(&two, weights + r * stride + key, sizeof two);
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(two);
      for (int v = 0; v < V; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], pair, value[v]);
    }
  }
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + r * d_pad + 16 * v, sum[r][v]);
}

void mix_values(const uint16_t* weights, int64_t stride, const uint32_t* values, int64_t num_keys, int64_t d_pad,
                float* out) {
  for (int64_t c = 0; c < d_pad; c += 64) {
    switch ((d_pad - c) / 16) {
      case 1: mix<1>(weights, stride, values + c, num_keys, d_pad, out + c); break;
      case 2: mix<2>(weights, stride, values + c, num_keys, d_pad, out + c); break;
      case 3: mix<3>(weights, stride, values + c, num_keys, d_pad, out + c); break;
      default: mix<4>(weights, stride, values + c, num_keys, d_pad, out + c);
    }
  }
}

struct Block {
  alignas(64) float logits[kQueries * (kChunk + 16)];
  alignas(64) float distance_h[kQueries * 2 * kSize], distance_w[kQueries * 2 * kSize];  // q . relative position
  alignas(64) float out[kQueries * kChannels];
  alignas(64) uint16_t weights[kQueries * kChunk];
  float maximum[kQueries], total[kQueries];
};

// The bias of one query of a block for the keys of a chunk, and `kNever` up to the next multiple of 16.
void fill_bias(const Attention& a, const Plan& plan, const Block& block, int64_t row, int64_t query, int64_t first_row,
               int64_t num_rows, float* logits) {
  const int64_t count = num_rows * a.key_columns, padded = round_up(count, 16);
  if (a.table_h == nullptr) {
    std::fill(logits, logits + count, 0.0f);
  } else {
    const float* down = block.distance_h + row * plan.distances + a.size - 1 + a.rows[query] - first_row;
    const float* to_left = block.distance_w + row * plan.distances + a.size - 1 + a.columns[query];
    alignas(64) float across[kChunk + 16];
    for (int64_t c = 0; c < a.key_columns; ++c) across[c] = to_left[-c];
    for (int64_t r = 0; r < num_rows; ++r) {
      const __m512 line = _mm512_set1_ps(down[-r]);
      float* target = logits + r * a.key_columns;
      for (int64_t c = 0; c < a.key_columns; c += 16)  // may write into the next row, which comes later
        _mm512_storeu_ps(target + c, _mm512_add_ps(line, _mm512_loadu_ps(across + c)));
    }
  }
  std::fill(logits + count, logits + padded, kNever);
}

// Turns a row of logits into weights of the running softmax, and scales what was summed before.
void soften(Block& block, int64_t row, int64_t num_keys, int64_t stride, int64_t d_pad, bool first) {
  const float* logits = block.logits + row * stride;
  uint16_t* weights = block.weights + row * kChunk;
  __m512 highest = _mm512_loadu_ps(logits);
  for (int64_t key = 16; key < num_keys; key += 16) highest = _mm512_max_ps(highest, _mm512_loadu_ps(logits + key));
  const float before = block.maximum[row];
  const float maximum = first ? _mm512_reduce_max_ps(highest) : std::max(before, _mm512_reduce_max_ps(highest));
  const __m512 shift = _mm512_set1_ps(maximum);
  __m512 total = _mm512_setzero_ps();
  for (int64_t key = 0; key < num_keys; key += 16) {
    const __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(logits + key), shift));
    total = _mm512_add_ps(total, weight);
    store_bf16(weights + key, weight);
  }
  block.total[row] = _mm512_reduce_add_ps(total) + (first ? 0.0f : block.total[row] * std::exp(before - maximum));
  if (!first && maximum > before) {
    const __m512 factor = _mm512_set1_ps(std::exp(before - maximum));
    float* out = block.out + row * d_pad;
    for (int64_t c = 0; c < d_pad; c += 16) _mm512_storeu_ps(out + c, _mm512_mul_ps(factor, _mm512_loadu_ps(out + c)));
  }
  block.maximum[row] = maximum;
}

// Queries `begin` to `end` - 1 of the sorted list, which all belong to the packed window and head.
void attend_block(const Attention& a, const Plan& plan, const uint32_t* tables, const uint32_t* packed, int64_t head,
                  int64_t begin, int64_t end, Block& block) {
  const int64_t count = end - begin, padded = round_up(count, kTile), pairs = a.d / 2;
  const int64_t stride = plan.chunk_stride + 16;
  const uint32_t* q[kQueries];
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t query = a.queries[begin + std::min(i, count - 1)];
    q[i] = reinterpret_cast<const uint32_t*>(a.q + query * a.q_stride + head * a.d);
  }
  std::fill(block.out, block.out + padded * plan.d_pad, 0.0f);
  for (int64_t side = 0; side < (tables == nullptr ? 0 : 2); ++side) {
    float* distances = side == 0 ? block.distance_h : block.distance_w;
    std::fill(distances, distances + padded * plan.distances, 0.0f);
    for (int64_t place = 0; place < plan.distances; place += 64)
      for (int64_t i = 0; i < padded; i += kTile)
        score_keys(q + i, tables + side * plan.table_stride + place * pairs, plan.distances - place, pairs, 1.0f,
                   distances + i * plan.distances + place, plan.distances);
  }
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const int64_t first_row = chunk * plan.chunk_rows, num_rows = std::min(plan.chunk_rows, a.key_rows - first_row);
    const int64_t num_keys = round_up(num_rows * a.key_columns, 16);
    const uint32_t* keys = packed + chunk * plan.chunk_stride * (pairs + plan.d_pad / 2);
    const uint32_t* values = keys + plan.chunk_stride * pairs;
    for (int64_t i = 0; i < padded; ++i)
      fill_bias(a, plan, block, i, a.queries[begin + std::min(i, count - 1)], first_row, num_rows,
                block.logits + i * stride);
    for (int64_t key = 0; key < num_keys; key += 64)
      for (int64_t i = 0; i < padded; i += kTile)
        score_keys(q + i, keys + key * pairs, num_keys - key, pairs, a.scale, block.logits + i * stride + key, stride);
    for (int64_t i = 0; i < padded; ++i) soften(block, i, num_keys, stride, plan.d_pad, chunk == 0);
    for (int64_t i = 0; i < padded; i += kTile)
      mix_values(block.weights + i * kChunk, kChunk, values, num_keys, plan.d_pad, block.out + i * plan.d_pad);
  }
  for (int64_t i = 0; i < count; ++i) {
    const __m512 factor = _mm512_set1_ps(1.0f / block.total[i]);
    uint16_t* out = a.out + a.queries[begin + i] * a.out_stride + head * a.d;
    for (int64_t c = 0; c < a.d; c += 16)
      store_bf16(out + c, _mm512_mul_ps(factor, _mm512_loadu_ps(block.out + i * plan.d_pad + c)), lanes_below(a.d - c));
  }
}

}  // namespace

extern "C" {

// 32-bit words of scratch memory that `bigltl_attend` wants.
int64_t bigltl_attend_scratch(const Attention* a, int64_t threads) {
  const Plan plan(*a);
  const int64_t problems = a->windows * a->heads;
  return plan.head_stride * (problems >= 4 * threads ? threads : problems) + 2 * plan.table_stride;
}

void bigltl_attend(const Attention* attention, uint32_t* scratch, int64_t threads) {
  const Attention& a = *attention;
  const Plan plan(a);
  const int64_t problems = a.windows * a.heads;
  const uint32_t* tables = a.table_h == nullptr ? nullptr : scratch;
  if (tables != nullptr) {
    const auto pack_table = [&](const uint16_t* table, uint32_t* packed) {
      pack_rows(a.d, 2 * a.size - 1, [&](int64_t row) { return table + row * a.d; }, packed);
    };
    pack_table(a.table_h, scratch);
    pack_table(a.table_w, scratch + plan.table_stride);
  }
  uint32_t* all_packed = scratch + 2 * plan.table_stride;
  if (problems >= 4 * threads) {  // one thread does a whole window and head
#pragma omp parallel num_threads(threads)
    {
      Block* block = new Block;
      uint32_t* packed = all_packed + omp_get_thread_num() * plan.head_stride;
#pragma omp for schedule(dynamic)
      for (int64_t problem = 0; problem < problems; ++problem) {
        const int64_t window = problem / a.heads, head = problem % a.heads;
        const int64_t begin = a.starts[window], end = a.starts[window + 1];
        if (begin == end) continue;
        pack(a, plan, window, head, packed);
        for (int64_t i = begin; i < end; i += kQueries)
          attend_block(a, plan, tables, packed, head, i, std::min(end, i + kQueries), *block);
      }
      delete block;
    }
    return;
  }
  // Few windows: threads share the queries of each.
  int64_t most = 0;
  for (int64_t window = 0; window < a.windows; ++window)
    most = std::max<int64_t>(most, a.starts[window + 1] - a.starts[window]);
  const int64_t blocks = (most + kQueries - 1) / kQueries;
#pragma omp parallel num_threads(threads)
  {
    Block* block = new Block;
#pragma omp for schedule(dynamic)
    for (int64_t problem = 0; problem < problems; ++problem)
      pack(a, plan, problem / a.heads, problem % a.heads, all_packed + problem * plan.head_stride);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < problems * blocks; ++task) {
      const int64_t problem = task / blocks, window = problem / a.heads;
      const int64_t begin = a.starts[window] + task % blocks * kQueries;
      const int64_t end = std::min<int64_t>(a.starts[window + 1], begin + kQueries);
      if (begin < end)
        attend_block(a, plan, tables, all_packed + problem * plan.head_stride, problem % a.heads, begin, end, *block);
    }
    delete block;
  }
}

}  // extern "C"
