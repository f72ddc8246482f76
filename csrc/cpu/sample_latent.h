// The latent draw: one row's statistics, selection and noise.
#pragma once

#include <cstdint>

#include "common/radix_sort.h"
#include "cpu/capability.h"

namespace lepo {

// A row is summarised a chunk at a time, and a chunk a block at a time. Both are fixed, so that
// neither threads nor the batch change a sum.
constexpr int64_t kBlockEntries = 256;
constexpr int64_t kChunkEntries = 32 * kBlockEntries;

enum class Noise { kNone, kGumbel, kGaussian, kDirichlet, kCategorical };

// Sums over a chunk, relative to `top`, its largest entry (or the lowest float, if that is more):
// of exp(a - top) and of (a - top) exp(a - top). NaN if an entry is NaN or +inf.
struct ChunkSums {
  float top;
  float mass;
  float shift;
};

// Ids that are never kept, prepared once for all rows.
struct Excluded {
  const uint32_t* bits;   // one per id; null if there are none
  const int32_t* blocks;  // the blocks that hold any
  int64_t block_count;
};

struct LatentOptions {
  int64_t vocab;
  int64_t top_k;    // in [1, vocab]
  int64_t width;    // of the outputs: top_k, or num_draws for categorical noise
  float top_p;      // inf: no filter
  float log_min_p;  // -inf: no filter
  Noise noise;
  float noise_scale;
  float clamp_low;
  float clamp_high;
  uint64_t seed;
  Excluded excluded;
};

// One row's part of the inputs, the workspace and the outputs.
struct LatentRow {
  const void* logits;  // [vocab]
  float inv_temperature;
  float tau;  // 0: all the weight on the token
  uint64_t row_key;
  uint32_t step;
  float* cells;           // [blocks, lanes], from `summarise`; changed where ids are excluded
  const ChunkSums* sums;  // [chunks], from `summarise`
  int64_t* ids;           // [width]
  float* weights;         // [width]
  float* scores;          // [width]
  float* kept_logits;     // [width]
  int32_t* count;
  float* lse;
  float* kept_lse;
  float* entropy;
  int64_t* shadow;
  int64_t* token;
};

// More entries than a vector has lanes.
constexpr int64_t kPadding = 64;

// What a thread needs beside: room for candidates, and for what is kept of them.
struct LatentScratch {
  int64_t capacity;  // candidate_capacity()
  int32_t* key;      // [capacity + kPadding]
  int32_t* id;       // [capacity + kPadding]
  KeyedItem* pairs;  // [2 * top_k]
  float* a;          // [top_k + kPadding]
  float* score;      // [top_k + kPadding]
  float* mass;       // [top_k + kPadding]
};

// Enough that dropping all but k of them is rare.
inline int64_t candidate_capacity(int64_t vocab, int64_t top_k) {
  const int64_t many = 16 * top_k + 4 * kBlockEntries;
  const int64_t all = vocab + kBlockEntries;
  return many < all ? many : all;
}

enum class RowState { kGood, kBadLogits, kNothingLeft };

struct SampleLatentKernels {
  int64_t lanes;
  // Reads `count` entries, those of a chunk, once, and writes `lanes` maxima per block.
  ChunkSums (*summarise[3])(const void* logits, float inv_temperature, int64_t count, float* cells);
  RowState (*draw[3])(const LatentOptions&, const LatentRow&, const LatentScratch&);
};

LEPO_DECLARE_KERNELS(SampleLatentKernels, sample_latent_kernels)

}  // namespace lepo
