// The random numbers of a row's entries.
//
// Contract: the words are common/philox.h's, so they are every backend's; the numbers made of them
// are the reference's, up to float32 rounding.
#pragma once

#include "common/gumbel.h"
#include "common/philox.h"
#include "cuda/runtime.cuh"

namespace lepo {

LEPO_DEVICE float gumbel_number(const PhiloxKey& key, int id, uint32_t draw) {
  return gumbel_from_word(philox_word(key, static_cast<uint32_t>(id), draw));
}

LEPO_DEVICE float exponential_number(const PhiloxKey& key, int id, uint32_t draw) {
  return exponential_from_word(philox_word(key, static_cast<uint32_t>(id), draw));
}

// Normal(0, 1) by Box-Muller: even ids take r cos, odd ids r sin of their pair.
LEPO_DEVICE float normal_number(const PhiloxKey& key, int id, uint32_t draw) {
  const PhiloxBlock block =
      philox_block(key, static_cast<uint32_t>(id) / 4 + draw * kPhiloxDrawStride);
  const bool upper = (id & 2) != 0;
  const float radius = sqrtf(2.0f * exponential_from_word(upper ? block.word[2] : block.word[0]));
  const float turn = uniform_from_word(upper ? block.word[3] : block.word[1]);
  float sine;
  float cosine;
  // Of 2 pi times the turn: no reduction of large angles, which would need local memory.
  sincospif(2.0f * turn, &sine, &cosine);
  return radius * ((id & 1) == 0 ? cosine : sine);
}

// A round accepts with probability above 0.95: 8 rounds fail once in 10^10.
constexpr int kGammaRounds = 8;

// log(v^3) of Marsaglia and Tsang, "A simple method for generating gamma variables" (2000): 0 if no
// round accepts.
LEPO_DEVICE float accepted_proposal(const PhiloxKey& key, int id, float d) {
  const float c = 1.0f / sqrtf(9.0f * d);
  for (uint32_t round = 0; round < kGammaRounds; ++round) {
    const float x = normal_number(key, id, 1 + 2 * round);
    const float root = 1.0f + c * x;
    const float proposal = 3.0f * logf(fmaxf(root, 1e-30f));
    const float bound = 0.5f * (x * x) + d * (1.0f - expf(proposal) + proposal);
    if (root > 0.0f && -exponential_number(key, id, 2 + 2 * round) < bound) return proposal;
  }
  return 0.0f;
}

// The logarithm of a Gamma(alpha, 1) number. Below 1, log Gamma(alpha) = log Gamma(alpha + 1) -
// Exponential / alpha: in logarithms it neither underflows nor divides by 0.
LEPO_DEVICE float log_gamma_number(const PhiloxKey& key, int id, float alpha) {
  const bool boost = alpha < 1.0f;
  const float d = (boost ? alpha + 1.0f : alpha) - 1.0f / 3;
  const float drawn = logf(d) + accepted_proposal(key, id, d);
  return boost ? drawn - exponential_number(key, id, 0) / alpha : drawn;
}

}  // namespace lepo
