// The kept entries of a row: filtered, perturbed and weighed.
//
// Arrays hold `count` entries, best first, and are padded to whole vectors: with -inf in `a`, id 0
// and any score. Formulas are the reference's, number for number, up to rounding.
#pragma once

#include <cfloat>
#include <cmath>

#include "cpu/element.h"
#include "cpu/sample_latent.h"
#include "cpu/selection.h"
#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {

struct Kept {
  const int32_t* id;
  float* a;
  float* score;
  float* mass;  // exp(a - a[0])
  int64_t count;
  float total;  // of mass
};

constexpr float kInfinity = __builtin_inff();

// --- Filters -------------------------------------------------------------------------------------

// Masses of the entries, and 0 in the padding. Returns their sum over the first `count`.
inline double weigh_masses(const float* a, float* mass, int64_t count) {
  const F32 top = broadcast(a[0]);
  for (int64_t i = 0; i < count; i += kLanes) store(mass + i, exp_or_zero(load(a + i) - top));
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += mass[i];
  return total;
}

// Keeps a prefix: entries whose preceding mass is below top_p, and that are not too far below the
// first, which always stays.
inline void filter(const LatentOptions& options, Kept& kept) {
  const double total = weigh_masses(kept.a, kept.mass, kept.count);
  const float scale = static_cast<float>(total);
  double sum = 0;
  int64_t stay = 0;
  for (; stay < kept.count; ++stay) {
    const float share = kept.mass[stay] / scale;
    const float before = static_cast<float>(sum + share) - share;
    const bool inside = before < options.top_p;
    const bool likely = kept.a[stay] - kept.a[0] >= options.log_min_p;
    if (stay > 0 && !(inside && likely)) break;
    sum += share;
  }
  double left = 0;
  for (int64_t i = 0; i < stay; ++i) left += kept.mass[i];
  for (int64_t i = stay; i < kept.count; ++i) kept.a[i] = -kInfinity, kept.mass[i] = 0;
  kept.count = stay;
  kept.total = static_cast<float>(left);
}

// --- Random numbers of entries -------------------------------------------------------------------

LEPO_INLINE U32 load_ids(const int32_t* from) { return reinterpret_cast<U32>(load_keys(from)); }

LEPO_INLINE WidePhiloxBlock blocks_of(const PhiloxKey& key, U32 ids, uint32_t draw) {
  return philox_blocks(key, (ids >> 2) + draw * kPhiloxDrawStride);
}

LEPO_INLINE U32 own_words(const WidePhiloxBlock& block, U32 ids) {
  const I32 odd = (ids & 1u) != 0u, upper = (ids & 2u) != 0u;
  const U32 low = odd ? block.word[1] : block.word[0];
  const U32 high = odd ? block.word[3] : block.word[2];
  return upper ? high : low;
}

LEPO_INLINE F32 square_root(F32 x) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// Normal(0, 1) numbers by Box-Muller: even ids take r cos, odd ids r sin of their pair.
LEPO_INLINE F32 normal_numbers(const PhiloxKey& key, U32 ids, uint32_t draw) {
  const WidePhiloxBlock block = blocks_of(key, ids, draw);
  const I32 upper = (ids & 2u) != 0u;
  const U32 even = upper ? block.word[2] : block.word[0];
  const U32 odd = upper ? block.word[3] : block.word[1];
  const F32 radius = square_root(2.0f * exponential_from_words(even));
  const F32 angle = uniform_from_words(odd) * 6.283185307179586f;
  F32 turn;
  for (int i = 0; i < kLanes; ++i) turn[i] = ids[i] % 2 == 0 ? cosf(angle[i]) : sinf(angle[i]);
  return radius * turn;
}

// --- Perturbation --------------------------------------------------------------------------------

inline void add_gumbel(const LatentOptions& options, const PhiloxKey& key, const Kept& kept) {
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    const U32 ids = load_ids(kept.id + i);
    F32 noise = gumbel_from_words(own_words(blocks_of(key, ids, 0), ids));
    noise = max(noise, broadcast(options.clamp_low));
    noise = min(noise, broadcast(options.clamp_high));
    store(kept.score + i, load(kept.a + i) + noise);
  }
}

// Root mean square of the kept entries, scaled so that no square overflows.
inline float root_mean_square(const Kept& kept) {
  float top = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    const float size = fabsf(kept.a[i]);
    top = size > top ? size : top;
  }
  if (top == 0) return 0;
  double sum = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    const float share = fabsf(kept.a[i]) / top;
    sum += static_cast<double>(share) * share;
  }
  return top * sqrtf(static_cast<float>(sum / static_cast<double>(kept.count)));
}

inline void add_gaussian(const LatentOptions& options, const PhiloxKey& key, const Kept& kept) {
  // Clamped twice: no inf * 0 in the product, no inf - inf between the scores.
  const F32 largest = broadcast(FLT_MAX);
  const F32 sigma = min(broadcast(options.noise_scale * root_mean_square(kept)), largest);
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    const F32 noise = sigma * normal_numbers(key, load_ids(kept.id + i), 0);
    store(kept.score + i, max(min(load(kept.a + i) + noise, largest), -largest));
  }
}

// A round accepts with probability above 0.95: 8 rounds fail once in 10^10.
constexpr int kGammaRounds = 8;
constexpr float kDirichletFloor = 1e-6f;

// log(v^3) of Marsaglia and Tsang, "A simple method for generating gamma variables" (2000): 0 in a
// lane that no round accepts.
LEPO_INLINE F32 accepted_proposals(const PhiloxKey& key, U32 ids, F32 d) {
  const F32 c = 1.0f / square_root(9.0f * d);
  F32 log_v{};
  I32 undecided = broadcast(-1);
  for (int i = 0; i < kGammaRounds && any(undecided); ++i) {
    const F32 x = normal_numbers(key, ids, 1 + 2 * i);
    const U32 words = own_words(blocks_of(key, ids, 2 + 2 * i), ids);
    const F32 root = 1.0f + c * x;
    const F32 proposal = 3.0f * log(max(root, broadcast(1e-30f)));
    const F32 bound = 0.5f * (x * x) + d * (1.0f - exp(proposal) + proposal);
    const I32 accepted = undecided & (root > 0.0f) & (-exponential_from_words(words) < bound);
    log_v = accepted ? proposal : log_v;
    undecided &= ~accepted;
  }
  return log_v;
}

// Scores are logarithms of Gamma(noise_scale * softmax(a) + 1e-6) numbers. Below 1,
// log Gamma(alpha) = log Gamma(alpha + 1) - Exponential / alpha: in logarithms it neither
// underflows nor divides by 0.
inline void draw_log_gammas(const LatentOptions& options, const PhiloxKey& key, const Kept& kept) {
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    const U32 ids = load_ids(kept.id + i);
    const F32 alpha = options.noise_scale * (load(kept.mass + i) / kept.total) + kDirichletFloor;
    const I32 boost = alpha < 1.0f;
    const F32 d = (boost ? alpha + 1.0f : alpha) - 1.0f / 3;
    const F32 extra = exponential_from_words(own_words(blocks_of(key, ids, 0), ids)) / alpha;
    const F32 drawn = log(d) + accepted_proposals(key, ids, d);
    store(kept.score + i, drawn - (boost ? extra : F32{}));
  }
}

inline void perturb(const LatentOptions& options, const PhiloxKey& key, const Kept& kept) {
  switch (options.noise) {
    case Noise::kGumbel:
      return add_gumbel(options, key, kept);
    case Noise::kGaussian:
      return add_gaussian(options, key, kept);
    case Noise::kDirichlet:
      return draw_log_gammas(options, key, kept);
    default:
      std::memcpy(kept.score, kept.a, kept.count * sizeof(float));
  }
}

// The entry that a Gumbel-max draw picks. Overwrites the scores.
inline int64_t pick(const PhiloxKey& key, uint32_t draw, const Kept& kept) {
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    const U32 ids = load_ids(kept.id + i);
    const F32 noise = gumbel_from_words(own_words(blocks_of(key, ids, draw), ids));
    store(kept.score + i, load(kept.a + i) + noise);
  }
  int64_t best = 0;
  for (int64_t i = 1; i < kept.count; ++i) {
    if (kept.score[i] > kept.score[best]) best = i;
  }
  return best;
}

// --- Weights -------------------------------------------------------------------------------------

// The entry with the largest score; of tied ones, the smallest id.
inline int64_t best_entry(const Kept& kept) {
  int64_t best = 0;
  for (int64_t i = 1; i < kept.count; ++i) {
    const bool better = kept.score[i] > kept.score[best];
    const bool tied = kept.score[i] == kept.score[best] && kept.id[i] < kept.id[best];
    if (better || tied) best = i;
  }
  return best;
}

// softmax(scores / tau) into kept.mass; at tau = 0 all the weight is on the best entry.
inline void weigh(float tau, int64_t best, const Kept& kept) {
  if (tau == 0) {
    for (int64_t i = 0; i < kept.count; ++i) kept.mass[i] = i == best ? 1.0f : 0.0f;
    return;
  }
  const F32 top = broadcast(kept.score[best]);
  F32 sum{};
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    const F32 gap = (load(kept.score + i) - top) / tau;
    const F32 weight = exp_or_zero(gap);
    const I32 real = lane_numbers() < static_cast<int32_t>(kept.count - i);
    store(kept.mass + i, real ? weight : F32{});
    sum += real ? weight : F32{};
  }
  const float total = sum_lanes(sum);
  for (int64_t i = 0; i < kept.count; i += kLanes) {
    store(kept.mass + i, load(kept.mass + i) / total);
  }
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
