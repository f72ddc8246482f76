#include "cpu/linear_log_probs.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bindings/checks.h"

namespace lepo {
namespace {

// Entries of a row that one task works on: rows of few logits are not worth a thread each, and long
// rows are cut, always at the same places, so that a row's bits do not depend on its batch.
constexpr int64_t kSpan = 16384;

LogitType logit_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return LogitType::kFloat32;
    case ScalarType::BFloat16:
      return LogitType::kBFloat16;
    case ScalarType::Half:
      return LogitType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "logits: expected float32, bfloat16 or float16");
  }
}

// Logits [rows, columns] of any row stride.
struct Rows {
  Rows(const Tensor& logits, const Tensor& inv_temperature)
      : data(static_cast<const char*>(logits.const_data_ptr())),
        type(logit_type(logits)),
        bytes(type == LogitType::kFloat32 ? 4 : 2) {
    STD_TORCH_CHECK(logits.is_cpu(), "logits: expected a CPU tensor");
    check_rows("logits", logits);
    count = logits.size(0);
    columns = logits.size(1);
    stride = logits.stride(0);
    scale_stride = per_row_stride("inv_temperature", inv_temperature, count);
    check_dense("inv_temperature", inv_temperature, ScalarType::Float, {inv_temperature.size(0)});
    scale = inv_temperature.const_data_ptr<float>();
  }

  LogitSpan span(int64_t row, int64_t begin, int64_t width) const {
    return {data + (row * stride + begin) * bytes,
            type,
            first + begin,
            width,
            bias == nullptr ? nullptr : bias + begin,
            softcap,
            scale[row * scale_stride]};
  }

  // For logits that are a chunk of the vocabulary, as the head's product left them.
  void set_head(const std::optional<Tensor>& bias_, double softcap_, int64_t first_) {
    if (bias_.has_value()) {
      check_dense("bias", *bias_, ScalarType::Float, {columns});
      bias = bias_->const_data_ptr<float>();
    }
    softcap = static_cast<float>(softcap_);
    first = first_;
  }

  const char* data;
  LogitType type;
  int64_t bytes;
  int64_t count;
  int64_t columns;
  int64_t stride;
  int64_t scale_stride;
  const float* scale;
  int64_t first = 0;
  const float* bias = nullptr;
  float softcap = 0.0f;
};

struct Ids {
  Ids(const Tensor& ids, int64_t rows) {
    STD_TORCH_CHECK(ids.dim() == 2, "ids: expected two dimensions");
    kept = ids.size(1);
    check_dense("ids", ids, ScalarType::Long, {rows, kept});
    data = ids.const_data_ptr<int64_t>();
  }

  const int64_t* data;
  int64_t kept;
};

// Upstream gradients and saved statistics of all rows.
struct Upstream {
  Upstream(const Ids& ids_, int64_t rows, const Tensor& alpha_, const Tensor& gamma_,
           const Tensor& eta_, const Tensor& lse_, const Tensor& entropy_)
      : ids(ids_) {
    check_dense("grad_logits", alpha_, ScalarType::Float, {rows, ids.kept});
    check_dense("grad_lse", gamma_, ScalarType::Float, {rows});
    check_dense("grad_entropy", eta_, ScalarType::Float, {rows});
    check_dense("lse", lse_, ScalarType::Float, {rows});
    check_dense("entropy", entropy_, ScalarType::Float, {rows});
    alpha = alpha_.const_data_ptr<float>();
    gamma = gamma_.const_data_ptr<float>();
    eta = eta_.const_data_ptr<float>();
    lse = lse_.const_data_ptr<float>();
    entropy = entropy_.const_data_ptr<float>();
  }

  RowGradient row(int64_t n) const {
    return {ids.data + n * ids.kept,
            alpha + n * ids.kept,
            ids.kept,
            gamma[n],
            eta[n],
            lse[n],
            entropy[n]};
  }

  bool is_zero(int64_t n) const {
    bool zero = gamma[n] == 0.0f && eta[n] == 0.0f;
    for (int64_t k = 0; k < ids.kept; ++k) zero = zero && alpha[n * ids.kept + k] == 0.0f;
    return zero;
  }

  Ids ids;
  const float* alpha;
  const float* gamma;
  const float* eta;
  const float* lse;
  const float* entropy;
};

// How many rows of `columns` logits make a task worth a thread.
int64_t rows_per_task(int64_t columns) { return columns < kSpan ? kSpan / (columns + 1) + 1 : 1; }

void write_statistics(const RowState& state, float* lse, float* entropy) {
  const double log_total =
      state.total > 0.0 ? std::log(state.total) : std::numeric_limits<double>::quiet_NaN();
  *lse = static_cast<float>(state.top + log_total);
  *entropy = static_cast<float>(log_total - state.weighted / state.total);
}

constexpr RowState kEmptyRow = {-std::numeric_limits<double>::infinity(), 0.0, 0.0};
static_assert(sizeof(RowState) == 3 * sizeof(double), "a row's state is three numbers");

void summarise_logits(const Tensor& logits, const std::optional<Tensor>& bias, double softcap,
                      const Tensor& inv_temperature, const Tensor& ids_, int64_t first,
                      Tensor state, Tensor selected_) {
  Rows rows(logits, inv_temperature);
  rows.set_head(bias, softcap, first);
  const Ids ids(ids_, rows.count);
  check_dense("state", state, ScalarType::Double, {rows.count, 3});
  check_dense("selected", selected_, ScalarType::Float, {rows.count, ids.kept});
  double* states = state.mutable_data_ptr<double>();
  float* selected = selected_.mutable_data_ptr<float>();
  torch::stable::parallel_for(
      0, rows.count, rows_per_task(rows.columns), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          RowState row;
          std::memcpy(&row, states + 3 * n, sizeof(row));
          linear_log_probs_kernels().summarise(rows.span(n, 0, rows.columns),
                                               ids.data + n * ids.kept, ids.kept,
                                               selected + n * ids.kept, &row);
          std::memcpy(states + 3 * n, &row, sizeof(row));
        }
      });
}

std::tuple<Tensor, Tensor> statistics_of(const Tensor& state) {
  const int64_t rows = state.size(0);
  check_dense("state", state, ScalarType::Double, {rows, 3});
  Tensor lse = torch::stable::new_empty(state, {rows}, ScalarType::Float);
  Tensor entropy = torch::stable::new_empty(state, {rows}, ScalarType::Float);
  const double* states = state.const_data_ptr<double>();
  for (int64_t n = 0; n < rows; ++n) {
    write_statistics({states[3 * n], states[3 * n + 1], states[3 * n + 2]},
                     lse.mutable_data_ptr<float>() + n, entropy.mutable_data_ptr<float>() + n);
  }
  return {lse, entropy};
}

void logit_gradient_(Tensor logits, const std::optional<Tensor>& bias, double softcap,
                     const Tensor& inv_temperature, const Tensor& ids_, int64_t first,
                     const Tensor& alpha, const Tensor& gamma, const Tensor& eta, const Tensor& lse,
                     const Tensor& entropy, std::optional<Tensor> out) {
  Rows rows(logits, inv_temperature);
  rows.set_head(bias, softcap, first);
  STD_TORCH_CHECK(rows.type == LogitType::kFloat32, "logits: expected float32");
  const Upstream upstream(Ids(ids_, rows.count), rows.count, alpha, gamma, eta, lse, entropy);
  float* data = nullptr;
  int64_t stride = rows.stride;
  if (out.has_value()) {
    check_dense("out", *out, ScalarType::Float, {rows.count, rows.columns});
    data = out->mutable_data_ptr<float>();
    stride = rows.columns;
  } else {
    data = logits.mutable_data_ptr<float>();
  }
  torch::stable::parallel_for(
      0, rows.count, rows_per_task(rows.columns), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          linear_log_probs_kernels().gradient(rows.span(n, 0, rows.columns), upstream.row(n),
                                              data + n * stride);
        }
      });
}

std::tuple<Tensor, Tensor, Tensor> gather_log_probs(const Tensor& logits, const Tensor& ids_,
                                                    const Tensor& inv_temperature) {
  const Rows rows(logits, inv_temperature);
  const Ids ids(ids_, rows.count);
  Tensor selected_ = torch::stable::new_empty(logits, {rows.count, ids.kept}, ScalarType::Float);
  Tensor lse_ = torch::stable::new_empty(logits, {rows.count}, ScalarType::Float);
  Tensor entropy_ = torch::stable::new_empty(logits, {rows.count}, ScalarType::Float);
  float* selected = selected_.mutable_data_ptr<float>();
  // An id that is out of range, which the caller checks for, falls into no span.
  std::fill_n(selected, rows.count * ids.kept, std::numeric_limits<float>::quiet_NaN());
  float* lse = lse_.mutable_data_ptr<float>();
  float* entropy = entropy_.mutable_data_ptr<float>();
  const int64_t spans = (rows.columns + kSpan - 1) / kSpan;
  std::vector<RowState> parts(rows.count * spans, kEmptyRow);
  torch::stable::parallel_for(
      0, rows.count * spans, rows_per_task(rows.columns), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t n = task / spans;
          const int64_t from = task % spans * kSpan;
          const int64_t width = std::min(kSpan, rows.columns - from);
          linear_log_probs_kernels().summarise(rows.span(n, from, width), ids.data + n * ids.kept,
                                               ids.kept, selected + n * ids.kept, &parts[task]);
        }
      });
  for (int64_t n = 0; n < rows.count; ++n) {
    RowState row = kEmptyRow;
    for (int64_t s = 0; s < spans; ++s) {
      linear_log_probs_kernels().merge(&row, parts[n * spans + s]);
    }
    write_statistics(row, lse + n, entropy + n);
  }
  return {selected_, lse_, entropy_};
}

Tensor gather_log_probs_backward(const Tensor& alpha, const Tensor& gamma, const Tensor& eta,
                                 const Tensor& logits, const Tensor& ids_,
                                 const Tensor& inv_temperature, const Tensor& lse,
                                 const Tensor& entropy) {
  const Rows rows(logits, inv_temperature);
  const Upstream upstream(Ids(ids_, rows.count), rows.count, alpha, gamma, eta, lse, entropy);
  Tensor dlogits = torch::stable::new_empty(logits, {rows.count, rows.columns});
  char* out = static_cast<char*>(dlogits.mutable_data_ptr());
  const int64_t spans = (rows.columns + kSpan - 1) / kSpan;
  torch::stable::parallel_for(
      0, rows.count * spans, rows_per_task(rows.columns), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t n = task / spans;
          const int64_t from = task % spans * kSpan;
          const int64_t width = std::min(kSpan, rows.columns - from);
          char* to = out + (n * rows.columns + from) * rows.bytes;
          if (upstream.is_zero(n)) {
            std::memset(to, 0, width * rows.bytes);
          } else {
            linear_log_probs_kernels().gradient(rows.span(n, from, width), upstream.row(n), to);
          }
        }
      });
  return dlogits;
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def(
      "summarise_logits(Tensor logits, Tensor? bias, float softcap, Tensor inv_temperature, "
      "Tensor ids, int first, Tensor(a!) state, Tensor(b!) selected) -> ()");
  m.def("statistics_of(Tensor state) -> (Tensor, Tensor)");
  m.def(
      "logit_gradient_(Tensor(a!) logits, Tensor? bias, float softcap, Tensor inv_temperature, "
      "Tensor ids, int first, Tensor grad_logits, Tensor grad_lse, Tensor grad_entropy, "
      "Tensor lse, Tensor entropy, Tensor(b!)? out=None) -> ()");
  m.def(
      "gather_log_probs(Tensor logits, Tensor ids, Tensor inv_temperature) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "gather_log_probs_backward(Tensor grad_logits, Tensor grad_lse, Tensor grad_entropy, "
      "Tensor logits, Tensor ids, Tensor inv_temperature, Tensor lse, Tensor entropy) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("summarise_logits", TORCH_BOX(&lepo::summarise_logits));
  m.impl("statistics_of", TORCH_BOX(&lepo::statistics_of));
  m.impl("logit_gradient_", TORCH_BOX(&lepo::logit_gradient_));
  m.impl("gather_log_probs", TORCH_BOX(&lepo::gather_log_probs));
  m.impl("gather_log_probs_backward", TORCH_BOX(&lepo::gather_log_probs_backward));
}
