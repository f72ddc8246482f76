#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/bindings/launch.h"
#include "cuda/bindings/mix_embeddings.h"
#include "cuda/bindings/sample_latent.h"

namespace lepo {
namespace {

using LatentStep = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                              Tensor, Tensor, Tensor>;

// The draw and the mixture, one behind the other on the current stream.
LatentStep latent_step(const Tensor& logits, const Tensor& embedding,
                       const std::optional<Tensor>& tau, const std::optional<Tensor>& temperature,
                       int64_t top_k, double top_p, double min_p, int64_t noise, double noise_scale,
                       double clamp_low, double clamp_high, int64_t num_draws,
                       const std::optional<Tensor>& exclude_ids, const std::optional<Tensor>& seed,
                       const std::optional<Tensor>& row_keys, const std::optional<Tensor>& step,
                       double tau_number, double temperature_number, int64_t seed_number,
                       int64_t step_number) {
  const LatentFields fields =
      sample_latent(logits, tau, temperature, top_k, top_p, min_p, noise, noise_scale, clamp_low,
                    clamp_high, num_draws, exclude_ids, seed, row_keys, step, tau_number,
                    temperature_number, seed_number, step_number);
  const Tensor& ids = std::get<0>(fields);
  const Tensor& weights = std::get<1>(fields);
  return std::tuple_cat(fields, std::make_tuple(mix_embeddings(ids, weights, embedding)));
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cuda, m) {
  m.def(
      "latent_step(Tensor logits, Tensor embedding, Tensor? tau, Tensor? temperature, int top_k, "
      "float top_p, float min_p, int noise, float noise_scale, float clamp_low, float clamp_high, "
      "int num_draws, Tensor? exclude_ids, Tensor? seed, Tensor? row_keys, Tensor? step, "
      "float tau_number, float temperature_number, int seed_number, int step_number) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, LEPO_CUDA_KEY, m) {
  m.impl("latent_step", TORCH_BOX(&lepo::latent_step));
}
