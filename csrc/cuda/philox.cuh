// Philox words of given entries.
//
// Contract: one thread per entry, ten rounds each; one read of the ids, one write of the words; no
// shared memory; deterministic, bit-identical to every other backend. One file includes this: the
// kernel is no template.
#pragma once

#include "common/philox.h"
#include "cuda/runtime.cuh"

namespace lepo {

constexpr int kPhiloxThreads = 256;

// Any grid of kPhiloxThreads threads a block covers all entries. A stride of 0 shares one step, or
// one row of ids, among all rows.
__global__ void __launch_bounds__(kPhiloxThreads)
    philox_words_kernel(const int64_t* __restrict__ seed,      // [1]
                        const int64_t* __restrict__ row_keys,  // [N]
                        const int64_t* __restrict__ steps,     // [N] or [1]
                        int64_t step_stride,                   // 1 or 0
                        const int64_t* __restrict__ ids,       // [N, K] or [1, K]
                        int64_t ids_stride,                    // K or 0
                        uint32_t draw, int64_t rows, int64_t width,
                        int64_t* __restrict__ words) {  // [N, K]
  const int64_t count = rows * width;
  const int64_t grid_threads = int64_t{gridDim.x} * kPhiloxThreads;
  for (int64_t i = int64_t{blockIdx.x} * kPhiloxThreads + threadIdx.x; i < count;
       i += grid_threads) {
    const int64_t row = i / width;
    const PhiloxKey key{static_cast<uint64_t>(*seed), static_cast<uint64_t>(row_keys[row]),
                        static_cast<uint32_t>(steps[row * step_stride])};
    const auto id = static_cast<uint32_t>(ids[row * ids_stride + i % width]);
    words[i] = philox_word(key, id, draw);
  }
}

}  // namespace lepo
