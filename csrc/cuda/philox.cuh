// Philox words of given entries.
//
// Contract: one block of ten rounds per entry, one thread per entry and pass; one read of the ids,
// one write of the words; deterministic, bit-identical to every other backend. The seed is read on
// the device, so that a captured graph does not freeze it.
#pragma once

#include "common/philox.h"
#include "cuda/philox.h"

namespace lepo {
namespace cuda {

__global__ void philox_words_kernel(const PhiloxWords problem) {
  const auto seed = static_cast<uint64_t>(*problem.seed);
  const int64_t count = problem.rows * problem.width;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const int64_t row = i / problem.width;
    const int64_t column = i - row * problem.width;
    const PhiloxKey key{seed, static_cast<uint64_t>(problem.row_keys[row]),
                        static_cast<uint32_t>(problem.step[row * problem.step_stride])};
    const auto id = static_cast<uint32_t>(problem.ids[row * problem.ids_stride + column]);
    problem.words[i] = philox_word(key, id, problem.draw);
  }
}

}  // namespace cuda
}  // namespace lepo
