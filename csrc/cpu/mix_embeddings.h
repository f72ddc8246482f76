// The embedding mixture and its gradients.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace lepo {

// A row of the table, or of the output's gradient, and its weight.
struct WeightedRow {
  int64_t row;
  float weight;
};

// The smallest and the largest id seen; empty at first.
struct IdRange {
  int64_t low = INT64_MAX;
  int64_t high = INT64_MIN;
};

// Element types are numbered as in bindings/tensors.h; a weight may be float64 (3) beside.
struct MixEmbeddingsKernels {
  // Widens `count` ids (int32, int64) and weights, and notes the ids' range.
  void (*read_ids[2])(const void* ids, int64_t count, WeightedRow* rows, IdRange& range);
  void (*read_weights[4])(const void* weights, int64_t count, WeightedRow* rows);
  void (*write_weights[4])(const float* values, int64_t count, void* weights);
  // out[begin:end] = sum of weight * matrix[row][begin:end], in the order of `rows`, skipping
  // weights of 0. `stride` counts elements between rows of the matrix. Of the `ahead` >= `count`
  // rows, those behind are fetched as the last ones are summed: the next call's.
  void (*sum_rows[3])(const void* matrix, int64_t stride, const WeightedRow* rows, int64_t count,
                      int64_t ahead, int64_t begin, int64_t end, void* out);
  // products[k] = sum of matrix[rows[k].row][:] * vector[:].
  void (*dot_rows[3])(const void* matrix, int64_t stride, const WeightedRow* rows, int64_t count,
                      int64_t width, const void* vector, float* products);
};

LEPO_DECLARE_KERNELS(MixEmbeddingsKernels, mix_embeddings_kernels)

}  // namespace lepo
