#include "cuda/philox.cuh"
#include "cuda_sim/entry.h"

// arrays: seed [1], row_keys [N], steps [N] or [1], ids [N, K] or [1, K], words [N, K]
// numbers: N, K, step_stride, ids_stride, draw, blocks
LEPO_ENTRY(philox_words) {
  lepo_test::check(lepo_launch(
      lepo::philox_words_kernel, dim3(static_cast<unsigned>(numbers[5])),
      dim3(lepo::kPhiloxThreads), 0, cudaStream_t{}, arrays.get<int64_t>(0), arrays.get<int64_t>(1),
      arrays.get<int64_t>(2), numbers[2], arrays.get<int64_t>(3), numbers[3],
      static_cast<uint32_t>(numbers[4]), numbers[0], numbers[1], arrays.get<int64_t>(4)));
}
