#include "cpu/philox.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/bindings/checks.h"

namespace lepo {
namespace {

Tensor philox_words(const Tensor& seed, const Tensor& row_keys, const Tensor& step,
                    const Tensor& ids, int64_t draw) {
  const int64_t rows = row_keys.numel();
  STD_TORCH_CHECK(ids.dim() == 2, "ids: expected two dimensions");
  const int64_t width = ids.size(1);
  const bool shared_ids = ids.size(0) == 1;
  check_dense("seed", seed, ScalarType::Long, {});
  check_dense("row_keys", row_keys, ScalarType::Long, {rows});
  check_dense("step", step, ScalarType::Long, {step.numel()});
  check_dense("ids", ids, ScalarType::Long, {shared_ids ? 1 : rows, width});
  const int64_t step_stride = per_row_stride("step", step, rows);
  const int64_t ids_stride = shared_ids ? 0 : width;
  Tensor out = torch::stable::new_empty(ids, {rows, width});
  const auto key = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
  const int64_t* row_key = row_keys.const_data_ptr<int64_t>();
  const int64_t* steps = step.const_data_ptr<int64_t>();
  const int64_t* entries = ids.const_data_ptr<int64_t>();
  int64_t* words = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      philox_kernels().words(
          key, static_cast<uint64_t>(row_key[n]), static_cast<uint32_t>(steps[n * step_stride]),
          static_cast<uint32_t>(draw), entries + n * ids_stride, width, words + n * width);
    }
  });
  return out;
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def("philox_words(Tensor seed, Tensor row_keys, Tensor step, Tensor ids, int draw) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("philox_words", TORCH_BOX(&lepo::philox_words));
}
