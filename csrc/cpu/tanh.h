// tanh of vectors, for logit softcapping.
//
// Accuracy against float64: within 2 units in the last place. tanh of NaN is NaN.
#pragma once

#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {

LEPO_INLINE F32 tanh(F32 x) {
  const F32 size = as_float(as_bits(x) & 0x7FFFFFFFu);
  // Near 0, where 1 - 2 / (exp(2x) + 1) cancels: x + x^3 Q(x^2) on |x| <= 0.6, minimax, relative
  // error 3e-9.
  const F32 square = size * size;
  F32 q = square * -0x1.82585p-8f + 0x1.54b8ap-6f;
  q = q * square - 0x1.b898dep-5f;
  q = q * square + 0x1.1109aep-3f;
  q = q * square - 0x1.55553ep-2f;
  const F32 near_zero = q * square * size + size;
  // From 10 on it is 1 in float32. Not min(): a NaN must pass.
  const F32 bounded = size > 10.0f ? broadcast(10.0f) : size;
  const F32 far = 1.0f - 2.0f / (exp(bounded * 2.0f) + 1.0f);
  const F32 y = size < 0.6f ? near_zero : far;
  return as_float(as_bits(y) | (as_bits(x) & 0x80000000u));
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
