// From Philox words to uniform, exponential and Gumbel(0, 1) numbers, in float32.
//
// Contract: v = min((word + 1/2) 2^-32, 1 - 2^-24), never 0 and never 1; the exponential number is
// -log1p(-v) and the Gumbel number -log(-log1p(-v)): finite, with a fine upper tail.
#pragma once

#include <cmath>

#include "common/portability.h"

namespace lepo {

constexpr float kLargestUniform = 1.0f - 0x1p-24f;

LEPO_HOST_DEVICE float uniform_from_word(uint32_t word) {
  const float v = (static_cast<float>(word) + 0.5f) * 0x1p-32f;
  return v < kLargestUniform ? v : kLargestUniform;
}

LEPO_HOST_DEVICE float exponential_from_word(uint32_t word) {
  return -log1pf(-uniform_from_word(word));
}

LEPO_HOST_DEVICE float gumbel_from_word(uint32_t word) {
  return -logf(exponential_from_word(word));
}

}  // namespace lepo
