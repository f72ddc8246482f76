#include <algorithm>

#include "cuda/philox.cuh"

namespace lepo {
namespace cuda {

constexpr int kThreads = 256;
// Enough to fill any GPU; what is beyond it, the kernel loops over.
constexpr int64_t kMaxBlocks = 1 << 16;

cudaError_t launch_philox_words(const PhiloxWords& problem, cudaStream_t stream) {
  const int64_t count = problem.rows * problem.width;
  if (count == 0) return cudaSuccess;
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, kMaxBlocks);
  philox_words_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace lepo
