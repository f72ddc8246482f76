#include "cuda/bindings/sample_latent.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "cuda/bindings/checks.h"
#include "cuda/bindings/element_kind.h"
#include "cuda/bindings/empty.h"
#include "cuda/bindings/launch.h"
#include "cuda/sample_latent.h"

namespace lepo {
namespace {

constexpr int64_t kMostEntries = 1 << 26;
constexpr int64_t kMostDraws = 64;

// A per-row argument: one entry for all rows, or one for each; without a tensor, the number.
template <typename T>
cuda::PerRow<T> per_row(const char* name, const std::optional<Tensor>& x, T number, int32_t device,
                        ScalarType dtype, int64_t rows) {
  if (!x.has_value()) return {nullptr, 0, number};
  check_dense(name, *x, device, dtype, {x->numel()});
  return {x->const_data_ptr<T>(), per_row_stride(name, *x, rows), number};
}

// The fields of LatentSample, in its order.
struct Outputs {
  Tensor ids, weights, scores, logits, count, lse, kept_lse, entropy, shadow, token;

  Outputs(int32_t device, int64_t rows, int64_t width)
      : ids(empty_cuda({rows, width}, ScalarType::Long, device)),
        weights(empty_cuda({rows, width}, ScalarType::Float, device)),
        scores(empty_cuda({rows, width}, ScalarType::Float, device)),
        logits(empty_cuda({rows, width}, ScalarType::Float, device)),
        count(empty_cuda({rows}, ScalarType::Int, device)),
        lse(empty_cuda({rows}, ScalarType::Float, device)),
        kept_lse(empty_cuda({rows}, ScalarType::Float, device)),
        entropy(empty_cuda({rows}, ScalarType::Float, device)),
        shadow(empty_cuda({rows}, ScalarType::Long, device)),
        token(empty_cuda({rows}, ScalarType::Long, device)) {}

  void fill(cuda::SampleLatent& problem) {
    problem.ids = ids.mutable_data_ptr<int64_t>();
    problem.weights = weights.mutable_data_ptr<float>();
    problem.scores = scores.mutable_data_ptr<float>();
    problem.logits_at = logits.mutable_data_ptr<float>();
    problem.count = count.mutable_data_ptr<int32_t>();
    problem.lse = lse.mutable_data_ptr<float>();
    problem.kept_lse = kept_lse.mutable_data_ptr<float>();
    problem.entropy = entropy.mutable_data_ptr<float>();
    problem.shadow = shadow.mutable_data_ptr<int64_t>();
    problem.token = token.mutable_data_ptr<int64_t>();
  }
};

}  // namespace

LatentFields sample_latent(const Tensor& logits, const std::optional<Tensor>& tau,
                           const std::optional<Tensor>& temperature, int64_t top_k, double top_p,
                           double min_p, int64_t noise, double noise_scale, double clamp_low,
                           double clamp_high, int64_t num_draws,
                           const std::optional<Tensor>& exclude_ids,
                           const std::optional<Tensor>& seed, const std::optional<Tensor>& row_keys,
                           const std::optional<Tensor>& step, double tau_number,
                           double temperature_number, int64_t seed_number, int64_t step_number) {
  const int32_t device = logits.get_device_index();
  check_device("logits", logits, device);
  check_rows("logits", logits);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  STD_TORCH_CHECK(rows <= std::numeric_limits<int32_t>::max(), "logits: too many rows");
  STD_TORCH_CHECK(vocab >= 1 && vocab <= kMostEntries, "logits: wrong number of columns");
  STD_TORCH_CHECK(top_k >= 1 && top_k <= vocab, "top_k: expected a number in [1, vocab]");
  STD_TORCH_CHECK(num_draws >= 1 && num_draws <= kMostDraws, "num_draws: expected 1 to 64");
  STD_TORCH_CHECK(noise >= 0 && noise <= static_cast<int64_t>(cuda::LatentNoise::kCategorical),
                  "noise: unknown");

  cuda::SampleLatent problem{};
  problem.logits = logits.const_data_ptr();
  problem.element = element_kind("logits", logits);
  problem.rows = rows;
  problem.row_stride = logits.stride(0);
  problem.vocab = static_cast<int>(vocab);
  problem.top_k = static_cast<int>(top_k);
  problem.noise = static_cast<cuda::LatentNoise>(noise);
  problem.width = problem.noise == cuda::LatentNoise::kCategorical ? static_cast<int>(num_draws)
                                                                   : problem.top_k;
  problem.top_p = top_p < 1 ? static_cast<float>(top_p) : std::numeric_limits<float>::infinity();
  problem.log_min_p =
      min_p > 0 ? static_cast<float>(std::log(min_p)) : -std::numeric_limits<float>::infinity();
  problem.noise_scale = static_cast<float>(noise_scale);
  problem.clamp_low = static_cast<float>(clamp_low);
  problem.clamp_high = static_cast<float>(clamp_high);
  problem.tau = per_row("tau", tau, tau_number, device, ScalarType::Double, rows);
  problem.temperature =
      per_row("temperature", temperature, temperature_number, device, ScalarType::Double, rows);
  problem.step = per_row("step", step, step_number, device, ScalarType::Long, rows);
  problem.seed.number = seed_number;
  if (seed.has_value()) {
    check_dense("seed", *seed, device, ScalarType::Long, {});
    problem.seed.values = seed->const_data_ptr<int64_t>();
  }
  if (row_keys.has_value()) {
    check_dense("row_keys", *row_keys, device, ScalarType::Long, {rows});
    problem.row_keys = row_keys->const_data_ptr<int64_t>();
  }
  if (exclude_ids.has_value()) {
    const int64_t count = exclude_ids->numel();
    STD_TORCH_CHECK(count <= kMostEntries, "exclude_ids: too many");
    check_dense("exclude_ids", *exclude_ids, device, ScalarType::Long, {count});
    problem.exclude_count = static_cast<int>(count);
    problem.exclude_ids = exclude_ids->const_data_ptr<int64_t>();
  }

  Outputs out(device, rows, problem.width);
  out.fill(problem);
  const CudaDevice on(device);
  check_launch("sample_latent", cuda::choose_splits(problem));
  Tensor workspace = empty_cuda({static_cast<int64_t>(cuda::sample_latent_workspace(problem))},
                                ScalarType::Byte, device);
  problem.workspace = workspace.mutable_data_ptr();
  check_launch("sample_latent", cuda::launch_sample_latent(problem, on.stream()));
  return {out.ids, out.weights,  out.scores,  out.logits, out.count,
          out.lse, out.kept_lse, out.entropy, out.shadow, out.token};
}

}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cuda, m) {
  m.def(
      "sample_latent(Tensor logits, Tensor? tau, Tensor? temperature, int top_k, float top_p, "
      "float min_p, int noise, float noise_scale, float clamp_low, float clamp_high, "
      "int num_draws, Tensor? exclude_ids, Tensor? seed, Tensor? row_keys, Tensor? step, "
      "float tau_number, float temperature_number, int seed_number, int step_number) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, LEPO_CUDA_KEY, m) {
  m.impl("sample_latent", TORCH_BOX(&lepo::sample_latent));
}
