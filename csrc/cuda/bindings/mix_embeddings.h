// What the bindings share that mix rows of a table.
#pragma once

#include "cuda/bindings/checks.h"
#include "cuda/mix_embeddings.h"

namespace lepo {

// Checks the arguments; the caller fills in where the mixture goes.
cuda::MixEmbeddings mixture_of(const Tensor& ids,         // [N, K] int64 or int32
                               const Tensor& weights,     // [N, K] float32
                               const Tensor& embedding);  // [V, D]

}  // namespace lepo
