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
LatentFields sample_latent(const Tensor& logits,       // [N, V]
                           const Tensor& tau,          // [N] or [1]
                           const Tensor& temperature,  // [N] or [1]
                           int64_t top_k, double top_p, double min_p, int64_t noise,
                           double noise_scale, double clamp_low, double clamp_high,
                           int64_t num_draws,
                           const std::optional<Tensor>& exclude_ids,  // [M]
                           const Tensor& seed,                        // []
                           const std::optional<Tensor>& row_keys,     // [N]
                           const Tensor& step);                       // [N] or [1]

}  // namespace lepo
