#include <algorithm>

#include "cuda/linear_log_probs.cuh"
#include "cuda/linear_log_probs.h"

namespace lepo {
namespace cuda {
namespace {

static_assert(kStateEntries == kUnitEntries, "one state per unit");
static_assert(sizeof(LogSumExp) == kStateNumbers * sizeof(float), "a state is three numbers");

struct RowGrid {
  dim3 blocks;
  dim3 threads;

  // `parts` of each row, one warp each.
  RowGrid(int64_t rows, int64_t parts) {
    const int64_t warps = std::min<int64_t>(parts, kRowWarps);
    blocks = dim3(static_cast<unsigned>(rows), static_cast<unsigned>((parts + warps - 1) / warps));
    threads = dim3(static_cast<unsigned>(warps * kWarpSize));
  }
};

template <typename T>
LogitRows<T> rows_of(const Logits& x) {
  return {static_cast<const T*>(x.logits),
          x.stride,
          static_cast<int>(x.columns),
          x.bias,
          x.softcap,
          x.softcap != 0.0f ? 1.0f / x.softcap : 0.0f,
          x.scale,
          x.scale_stride};
}

SelectedIds selection_of(const Logits& x) { return {x.ids, x.kept, x.first}; }

template <typename T>
cudaError_t summarise(const Logits& x, float* states, int64_t units, float* selected,
                      cudaStream_t stream) {
  const RowGrid grid(x.rows, (x.columns + kUnitEntries - 1) / kUnitEntries);
  const bool plain = x.bias == nullptr && x.softcap == 0.0f;
  const auto kernel = plain ? summarise_kernel<T, false> : summarise_kernel<T, true>;
  return lepo_launch(kernel, grid.blocks, grid.threads, 0, stream, rows_of<T>(x), selection_of(x),
                     static_cast<int>(units), reinterpret_cast<LogSumExp*>(states), selected);
}

template <typename T, typename Out>
cudaError_t gradient(const Logits& x, const Upstream& up, void* out, int64_t out_stride,
                     cudaStream_t stream) {
  // A row may begin up to a vector less one entry behind an aligned address.
  const int64_t entries = x.columns + Vector<Out>::kSize - 1;
  const RowGrid grid(x.rows, (entries + kPartEntries - 1) / kPartEntries);
  const auto kernel = x.softcap != 0.0f ? logit_gradient_kernel<T, Out, true>
                                        : logit_gradient_kernel<T, Out, false>;
  return lepo_launch(kernel, grid.blocks, grid.threads, 0, stream, rows_of<T>(x), selection_of(x),
                     RowGradients{up.alpha, up.gamma, up.eta, up.lse, up.entropy},
                     static_cast<Out*>(out), out_stride);
}

}  // namespace

cudaError_t launch_summarise_logits(const Logits& logits, float* states, int64_t units,
                                    float* selected, cudaStream_t stream) {
  if (logits.rows == 0 || logits.columns == 0) return cudaSuccess;
  switch (logits.element) {
    case ElementKind::kFloat32:
      return summarise<float>(logits, states, units, selected, stream);
    case ElementKind::kBFloat16:
      return summarise<BFloat16>(logits, states, units, selected, stream);
    default:
      return summarise<Float16>(logits, states, units, selected, stream);
  }
}

cudaError_t launch_statistics_of(const float* states, int64_t rows, int64_t units, float* lse,
                                 float* entropy, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return lepo_launch(statistics_kernel, dim3(static_cast<unsigned>(rows)), dim3(kMergeThreads), 0,
                     stream, reinterpret_cast<const LogSumExp*>(states), static_cast<int>(units),
                     lse, entropy);
}

cudaError_t launch_logit_gradient(const Logits& logits, const Upstream& upstream, void* out,
                                  ElementKind out_element, int64_t out_stride,
                                  cudaStream_t stream) {
  if (logits.rows == 0 || logits.columns == 0) return cudaSuccess;
  const auto run = [&](auto launch) { return launch(logits, upstream, out, out_stride, stream); };
  if (logits.element == ElementKind::kBFloat16) return run(gradient<BFloat16, BFloat16>);
  if (logits.element == ElementKind::kFloat16) return run(gradient<Float16, Float16>);
  switch (out_element) {
    case ElementKind::kFloat32:
      return run(gradient<float, float>);
    case ElementKind::kBFloat16:
      return run(gradient<float, BFloat16>);
    default:
      return run(gradient<float, Float16>);
  }
}

}  // namespace cuda
}  // namespace lepo
