#include <algorithm>

#include "cuda/sample_latent.cuh"
#include "cuda/sample_latent.h"

namespace lepo {
namespace cuda {
namespace {

// More parts than this, one block cannot merge at once.
constexpr int64_t kMostSplits = 64;
static_assert(kMostSplits * kMostNarrow <= kNarrowThreads * kTileLaneEntries, "a thread's share");

bool is_narrow(const SampleLatent& problem) { return problem.top_k <= kMostNarrow; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where each part of the workspace begins, in bytes, and how many there are.
struct Layout {
  size_t units = 0;
  size_t entries;
  size_t tickets;
  size_t bytes;

  explicit Layout(const SampleLatent& problem) {
    const auto rows = static_cast<size_t>(problem.rows);
    const int64_t tiles = divide_up(problem.vocab, kNarrowTile);
    const auto count = static_cast<size_t>(tiles * kNarrowWarps * kTileUnits);
    entries = aligned(rows * count * sizeof(LogSumExp));
    tickets = aligned(entries + rows * entries_per_row(problem) * sizeof(uint64_t));
    bytes = tickets + rows * sizeof(unsigned);
  }

 private:
  static size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

  static size_t entries_per_row(const SampleLatent& problem) {
    size_t room = is_narrow(problem) ? static_cast<size_t>(problem.splits) : 1;
    for (size_t size = 1; size < static_cast<size_t>(problem.top_k); size *= 2) room *= 2;
    return room;
  }
};

template <typename T>
cudaError_t launch_latent(const SampleLatent& problem, const LatentWorkspace& workspace,
                          cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(problem.rows);
  if (!is_narrow(problem)) {
    return lepo_launch(wide_latent_kernel<T>, dim3(blocks), dim3(kWideThreads), 0, stream, problem,
                       workspace);
  }
  return lepo_launch(narrow_latent_kernel<T>, dim3(blocks * static_cast<unsigned>(problem.splits)),
                     dim3(kNarrowThreads), 0, stream, problem, workspace);
}

}  // namespace

cudaError_t choose_splits(SampleLatent& problem) {
  int device = 0;
  int multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t tiles = divide_up(problem.vocab, kNarrowTile);
  const int64_t resident = int64_t{multiprocessors} * kNarrowBlocks<BFloat16>;
  const int64_t wanted = std::max<int64_t>(1, resident / std::max<int64_t>(1, problem.rows));
  problem.splits = static_cast<int>(std::min({wanted, tiles, kMostSplits}));
  return cudaSuccess;
}

size_t sample_latent_workspace(const SampleLatent& problem) { return Layout(problem).bytes; }

cudaError_t launch_sample_latent(const SampleLatent& problem, cudaStream_t stream) {
  if (problem.rows == 0) return cudaSuccess;
  const Layout layout(problem);
  char* const base = static_cast<char*>(problem.workspace);
  LatentWorkspace workspace{reinterpret_cast<LogSumExp*>(base + layout.units),
                            reinterpret_cast<uint64_t*>(base + layout.entries),
                            reinterpret_cast<unsigned*>(base + layout.tickets)};
  if (is_narrow(problem) && problem.splits > 1) {
    const cudaError_t error =
        cudaMemsetAsync(workspace.tickets, 0, problem.rows * sizeof(unsigned), stream);
    if (error != cudaSuccess) return error;
  }
  switch (problem.element) {
    case ElementKind::kFloat32:
      return launch_latent<float>(problem, workspace, stream);
    case ElementKind::kBFloat16:
      return launch_latent<BFloat16>(problem, workspace, stream);
    default:
      return launch_latent<Float16>(problem, workspace, stream);
  }
}

}  // namespace cuda
}  // namespace lepo
