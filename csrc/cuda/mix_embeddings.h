// The embedding mixture and its gradients.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/element_kind.h"

namespace lepo {
namespace cuda {

// All pointers are to device memory.

// What is mixed, and with what weights.
struct MixEntries {
  const void* ids;       // [rows, kept], int64 or int32
  const float* weights;  // [rows, kept]
  int64_t vocab;
  int64_t rows;
  int64_t kept;
  bool wide_ids;  // int64
};

// The rows are dense, and `stride` elements apart.
struct MixMatrix {
  const void* data;
  int64_t stride;
};

struct MixEmbeddings {
  MixEntries entries;
  MixMatrix embedding;  // [vocab, width]
  void* mixed;          // [rows, width], written
  int64_t width;
  ElementKind element;
};

cudaError_t launch_mix_embeddings(const MixEmbeddings& problem, cudaStream_t stream);

struct MixDweights {
  MixEntries entries;   // without weights
  MixMatrix embedding;  // [vocab, width]
  MixMatrix grad;       // [rows, width]
  float* dweights;      // [rows, kept], written
  int64_t width;
  ElementKind element;
};

cudaError_t launch_mix_dweights(const MixDweights& problem, cudaStream_t stream);

// What the entries are to be sorted by, stably, for MixDembedding.
cudaError_t launch_mix_keys(const MixEntries& entries,
                            int32_t* keys,  // [rows * kept], written
                            cudaStream_t stream);

struct MixDembedding {
  MixEntries entries;    // without ids
  const int32_t* keys;   // [rows * kept], ascending
  const int64_t* order;  // [rows * kept], where each key was before
  MixMatrix grad;        // [rows, width]
  float* workspace;      // [mix_workspace_size()], written
  void* dembedding;      // [vocab, width], written
  int64_t width;
  ElementKind element;
};

int64_t mix_workspace_size(int64_t rows, int64_t kept, int64_t width);

cudaError_t launch_mix_dembedding(const MixDembedding& problem, cudaStream_t stream);

}  // namespace cuda
}  // namespace lepo
