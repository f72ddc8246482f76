// Philox words of given entries.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lepo {
namespace cuda {

// All pointers are to device memory. A stride of 0 shares one entry, or one row of ids, among all
// rows.
struct PhiloxWords {
  const int64_t* seed;      // []
  const int64_t* row_keys;  // [rows]
  const int64_t* step;      // [rows] or [1]
  const int64_t* ids;       // [rows, width] or [1, width], each in [0, 2^26)
  int64_t* words;           // [rows, width], written
  int64_t rows;
  int64_t width;
  int64_t step_stride;
  int64_t ids_stride;
  uint32_t draw;
};

cudaError_t launch_philox_words(const PhiloxWords& problem, cudaStream_t stream);

}  // namespace cuda
}  // namespace lepo
