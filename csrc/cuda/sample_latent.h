// The latent draw: a row's statistics, selection and noise.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/element_kind.h"

namespace lepo {
namespace cuda {

enum class LatentNoise { kNone, kGumbel, kGaussian, kDirichlet, kCategorical };

// A number of each row. One that the host knows is passed by value: a tensor of it would cost a
// launch of its own.
template <typename T>
struct PerRow {
  const T* values;  // [rows], or [1] with a stride of 0; null: `number` for all rows
  int64_t stride;
  T number;
};

// All pointers are to device memory.
struct SampleLatent {
  const void* logits;  // [rows, vocab]
  ElementKind element;
  int64_t rows;
  int64_t row_stride;  // in elements
  int vocab;           // at most 2^26
  int top_k;           // in [1, vocab]
  int width;           // of the outputs: top_k, or the number of draws for categorical noise
  float top_p;         // inf: no filter
  float log_min_p;     // -inf: no filter
  LatentNoise noise;
  float noise_scale;
  float clamp_low;
  float clamp_high;
  PerRow<double> tau;
  PerRow<double> temperature;
  PerRow<int64_t> seed;  // one for all rows
  PerRow<int64_t> step;
  const int64_t* row_keys;     // [rows], or null to number the rows
  const int64_t* exclude_ids;  // [exclude_count]; those out of range exclude nothing
  int exclude_count;

  int64_t* ids;      // [rows, width], written, as all below
  float* weights;    // [rows, width]
  float* scores;     // [rows, width]
  float* logits_at;  // [rows, width]
  int32_t* count;    // [rows]
  float* lse;        // [rows]
  float* kept_lse;   // [rows]
  float* entropy;    // [rows]
  int64_t* shadow;   // [rows]
  int64_t* token;    // [rows]

  int splits;       // blocks that share a row; it changes no bit of the results
  void* workspace;  // sample_latent_workspace(*this) bytes, aligned to 16
};

// As many blocks a row as keep the current device busy.
cudaError_t choose_splits(SampleLatent& problem);

size_t sample_latent_workspace(const SampleLatent& problem);

cudaError_t launch_sample_latent(const SampleLatent& problem, cudaStream_t stream);

}  // namespace cuda
}  // namespace lepo
