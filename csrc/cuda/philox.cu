#include <algorithm>

#include "cuda/philox.cuh"
#include "cuda/philox.h"

namespace lepo {
namespace cuda {

// Enough to fill any GPU; what is beyond it, the kernel loops over.
constexpr int64_t kMaxBlocks = 1 << 16;

cudaError_t launch_philox_words(const PhiloxWords& problem, cudaStream_t stream) {
  const int64_t count = problem.rows * problem.width;
  if (count == 0) return cudaSuccess;
  const int64_t blocks = std::min((count + kPhiloxThreads - 1) / kPhiloxThreads, kMaxBlocks);
  return lepo_launch(philox_words_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kPhiloxThreads),
                     0, stream, problem.seed, problem.row_keys, problem.step, problem.step_stride,
                     problem.ids, problem.ids_stride, problem.draw, problem.rows, problem.width,
                     problem.words);
}

}  // namespace cuda
}  // namespace lepo
