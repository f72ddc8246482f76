#include "cuda/philox.h"

#include <torch/csrc/stable/library.h>

#include "cuda/bindings/checks.h"
#include "cuda/bindings/empty.h"
#include "cuda/bindings/launch.h"

namespace lepo {
namespace {

Tensor philox_words(const Tensor& seed, const Tensor& row_keys, const Tensor& step,
                    const Tensor& ids, int64_t draw) {
  const int64_t rows = row_keys.numel();
  const int32_t device = row_keys.get_device_index();
  STD_TORCH_CHECK(ids.dim() == 2, "ids: expected two dimensions");
  const int64_t width = ids.size(1);
  const bool shared_ids = ids.size(0) == 1;
  check_dense("seed", seed, device, ScalarType::Long, {});
  check_dense("row_keys", row_keys, device, ScalarType::Long, {rows});
  check_dense("step", step, device, ScalarType::Long, {step.numel()});
  check_dense("ids", ids, device, ScalarType::Long, {shared_ids ? 1 : rows, width});
  Tensor out = empty_cuda({rows, width}, ScalarType::Long, device);

  cuda::PhiloxWords problem{};
  problem.seed = seed.const_data_ptr<int64_t>();
  problem.row_keys = row_keys.const_data_ptr<int64_t>();
  problem.step = step.const_data_ptr<int64_t>();
  problem.ids = ids.const_data_ptr<int64_t>();
  problem.words = out.mutable_data_ptr<int64_t>();
  problem.rows = rows;
  problem.width = width;
  problem.step_stride = per_row_stride("step", step, rows);
  problem.ids_stride = shared_ids ? 0 : width;
  problem.draw = static_cast<uint32_t>(draw);

  const CudaDevice on(device);
  check_launch("philox_words", cuda::launch_philox_words(problem, on.stream()));
  return out;
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cuda, m) {
  m.def("philox_words(Tensor seed, Tensor row_keys, Tensor step, Tensor ids, int draw) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, LEPO_CUDA_KEY, m) {
  m.impl("philox_words", TORCH_BOX(&lepo::philox_words));
}
