// Row statistics of logits, and the gradient of the logits from those of the statistics.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/element_kind.h"

namespace lepo {
namespace cuda {

// States of a row are kept for every so many entries.
constexpr int64_t kStateEntries = 512;
constexpr int64_t kStateNumbers = 3;
// The limits of a grid.
constexpr int64_t kMostRows = (int64_t{1} << 31) - 1;
constexpr int64_t kMostColumns = int64_t{1} << 27;

// Logits of a part of the vocabulary, how they become a = cap(x + bias) * scale, and the ids that
// are selected. All pointers are to device memory.
struct Logits {
  const void* logits;  // [rows, columns]
  ElementKind element;
  int64_t rows;
  int64_t columns;
  int64_t stride;      // elements from row to row
  const float* bias;   // [columns], or null
  float softcap;       // cap(x) = softcap * tanh(x / softcap); 0: none
  const float* scale;  // [rows] or [1]
  int64_t scale_stride;
  const int64_t* ids;  // [rows, kept], of the whole vocabulary
  int64_t kept;
  int64_t first;  // the vocabulary id of the first column
};

// Writes the states of the part's units and the selected logits that are inside the part.
// `first` is a multiple of kStateEntries.
cudaError_t launch_summarise_logits(const Logits& logits,
                                    float* states,    // [rows, units, kStateNumbers]
                                    int64_t units,    // of the whole vocabulary
                                    float* selected,  // [rows, kept]
                                    cudaStream_t stream);

cudaError_t launch_statistics_of(const float* states,  // [rows, units, kStateNumbers]
                                 int64_t rows, int64_t units,
                                 float* lse,      // [rows], written
                                 float* entropy,  // [rows], written
                                 cudaStream_t stream);

// Upstream gradients of the rows, and their statistics.
struct Upstream {
  const float* alpha;    // [rows, kept], of the selected logits
  const float* gamma;    // [rows], of the log-sum-exp
  const float* eta;      // [rows], of the entropy
  const float* lse;      // [rows]
  const float* entropy;  // [rows]
};

// `out` may be the logits; its elements are float32 only if theirs are, and the logits' kind or,
// for float32 logits, any.
cudaError_t launch_logit_gradient(const Logits& logits, const Upstream& upstream,
                                  void* out,  // [rows, columns], written
                                  ElementKind out_element, int64_t out_stride, cudaStream_t stream);

}  // namespace cuda
}  // namespace lepo
