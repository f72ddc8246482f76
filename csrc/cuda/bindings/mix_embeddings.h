// The embedding mixture, for the bindings that end with one.
#pragma once

#include "common/checks.h"

namespace lepo {

Tensor mix_embeddings(const Tensor& ids,         // [N, K] int64 or int32
                      const Tensor& weights,     // [N, K] float32
                      const Tensor& embedding);  // [V, D]

}  // namespace lepo
