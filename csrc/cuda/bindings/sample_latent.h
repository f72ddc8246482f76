// The latent draw, for the bindings that begin with one.
#pragma once

#include <optional>
#include <tuple>

#include "common/checks.h"

namespace lepo {

// The fields of LatentSample, in its order.
using LatentFields =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Reads no value on the host: a row whose arguments or logits are out of range gets NaN.
// Where an optional tensor but for row_keys is missing, its number takes its place.
LatentFields sample_latent(const Tensor& logits,                      // [N, V]
                           const std::optional<Tensor>& tau,          // [N] or [1]
                           const std::optional<Tensor>& temperature,  // [N] or [1]
                           int64_t top_k, double top_p, double min_p, int64_t noise,
                           double noise_scale, double clamp_low, double clamp_high,
                           int64_t num_draws,
                           const std::optional<Tensor>& exclude_ids,  // [M]
                           const std::optional<Tensor>& seed,         // []
                           const std::optional<Tensor>& row_keys,     // [N]
                           const std::optional<Tensor>& step,         // [N] or [1]
                           double tau_number, double temperature_number, int64_t seed_number,
                           int64_t step_number);

}  // namespace lepo
