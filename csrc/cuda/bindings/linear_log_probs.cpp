#include "cuda/linear_log_probs.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/bindings/checks.h"
#include "cuda/bindings/element_kind.h"
#include "cuda/bindings/empty.h"
#include "cuda/bindings/launch.h"

namespace lepo {
namespace {

int64_t states_of(int64_t columns) {
  return (columns + cuda::kStateEntries - 1) / cuda::kStateEntries;
}

// Logits [rows, columns] of any row stride, as the head's product left them.
cuda::Logits checked(const Tensor& logits, const std::optional<Tensor>& bias, double softcap,
                     const Tensor& inv_temperature, const Tensor& ids, int64_t first) {
  const int32_t device = logits.get_device_index();
  check_device("logits", logits, device);
  check_rows("logits", logits);
  cuda::Logits x{};
  x.logits = logits.const_data_ptr();
  x.element = element_kind("logits", logits);
  x.rows = logits.size(0);
  x.columns = logits.size(1);
  STD_TORCH_CHECK(x.rows <= cuda::kMostRows && x.columns <= cuda::kMostColumns,
                  "logits: too many rows or columns");
  x.stride = logits.stride(0);
  if (bias.has_value()) {
    check_dense("bias", *bias, device, ScalarType::Float, {x.columns});
    x.bias = bias->const_data_ptr<float>();
  }
  x.softcap = static_cast<float>(softcap);
  check_dense("inv_temperature", inv_temperature, device, ScalarType::Float,
              {inv_temperature.numel()});
  x.scale = inv_temperature.const_data_ptr<float>();
  x.scale_stride = per_row_stride("inv_temperature", inv_temperature, x.rows);
  STD_TORCH_CHECK(ids.dim() == 2, "ids: expected two dimensions");
  x.kept = ids.size(1);
  check_dense("ids", ids, device, ScalarType::Long, {x.rows, x.kept});
  x.ids = ids.const_data_ptr<int64_t>();
  x.first = first;
  return x;
}

void summarise_logits(const Tensor& logits, const std::optional<Tensor>& bias, double softcap,
                      const Tensor& inv_temperature, const Tensor& ids, int64_t first,
                      Tensor states, Tensor selected) {
  const cuda::Logits x = checked(logits, bias, softcap, inv_temperature, ids, first);
  const int32_t device = logits.get_device_index();
  STD_TORCH_CHECK(states.dim() == 3, "states: expected three dimensions");
  const int64_t units = states.size(1);
  check_dense("states", states, device, ScalarType::Float, {x.rows, units, cuda::kStateNumbers});
  STD_TORCH_CHECK(first >= 0 && first % cuda::kStateEntries == 0, "first: expected a multiple of ",
                  cuda::kStateEntries);
  STD_TORCH_CHECK(first / cuda::kStateEntries + states_of(x.columns) <= units,
                  "states: too few for these logits");
  check_dense("selected", selected, device, ScalarType::Float, {x.rows, x.kept});
  const CudaDevice on(device);
  check_launch("summarise_logits",
               cuda::launch_summarise_logits(x, states.mutable_data_ptr<float>(), units,
                                             selected.mutable_data_ptr<float>(), on.stream()));
}

std::tuple<Tensor, Tensor> statistics_of(const Tensor& states) {
  const int32_t device = states.get_device_index();
  STD_TORCH_CHECK(states.dim() == 3, "states: expected three dimensions");
  const int64_t rows = states.size(0);
  const int64_t units = states.size(1);
  check_dense("states", states, device, ScalarType::Float, {rows, units, cuda::kStateNumbers});
  STD_TORCH_CHECK(rows <= cuda::kMostRows && units <= states_of(cuda::kMostColumns),
                  "states: too many");
  Tensor lse = empty_cuda({rows}, ScalarType::Float, device);
  Tensor entropy = empty_cuda({rows}, ScalarType::Float, device);
  const CudaDevice on(device);
  check_launch("statistics_of",
               cuda::launch_statistics_of(states.const_data_ptr<float>(), rows, units,
                                          lse.mutable_data_ptr<float>(),
                                          entropy.mutable_data_ptr<float>(), on.stream()));
  return {lse, entropy};
}

void logit_gradient(const Tensor& logits, const std::optional<Tensor>& bias, double softcap,
                    const Tensor& inv_temperature, const Tensor& ids, int64_t first,
                    const Tensor& alpha, const Tensor& gamma, const Tensor& eta, const Tensor& lse,
                    const Tensor& entropy, Tensor out) {
  const cuda::Logits x = checked(logits, bias, softcap, inv_temperature, ids, first);
  const int32_t device = logits.get_device_index();
  check_dense("grad_logits", alpha, device, ScalarType::Float, {x.rows, x.kept});
  check_dense("grad_lse", gamma, device, ScalarType::Float, {x.rows});
  check_dense("grad_entropy", eta, device, ScalarType::Float, {x.rows});
  check_dense("lse", lse, device, ScalarType::Float, {x.rows});
  check_dense("entropy", entropy, device, ScalarType::Float, {x.rows});
  check_device("out", out, device);
  check_rows("out", out);
  STD_TORCH_CHECK(out.size(0) == x.rows && out.size(1) == x.columns, "out: wrong size");
  const cuda::ElementKind out_element = element_kind("out", out);
  STD_TORCH_CHECK(x.element == cuda::ElementKind::kFloat32 || x.element == out_element,
                  "out: expected the dtype of the logits");
  const cuda::Upstream upstream{alpha.const_data_ptr<float>(), gamma.const_data_ptr<float>(),
                                eta.const_data_ptr<float>(), lse.const_data_ptr<float>(),
                                entropy.const_data_ptr<float>()};
  const CudaDevice on(device);
  check_launch("logit_gradient",
               cuda::launch_logit_gradient(x, upstream, out.mutable_data_ptr(), out_element,
                                           out.stride(0), on.stream()));
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cuda, m) {
  m.def(
      "summarise_logits(Tensor logits, Tensor? bias, float softcap, Tensor inv_temperature, "
      "Tensor ids, int first, Tensor(a!) states, Tensor(b!) selected) -> ()");
  m.def("statistics_of(Tensor states) -> (Tensor, Tensor)");
  m.def(
      "logit_gradient(Tensor logits, Tensor? bias, float softcap, Tensor inv_temperature, "
      "Tensor ids, int first, Tensor grad_logits, Tensor grad_lse, Tensor grad_entropy, "
      "Tensor lse, Tensor entropy, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, LEPO_CUDA_KEY, m) {
  m.impl("summarise_logits", TORCH_BOX(&lepo::summarise_logits));
  m.impl("statistics_of", TORCH_BOX(&lepo::statistics_of));
  m.impl("logit_gradient", TORCH_BOX(&lepo::logit_gradient));
}
