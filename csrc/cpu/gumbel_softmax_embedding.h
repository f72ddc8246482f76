// The Gumbel-softmax weights of a row, a tile of the vocabulary at a time: z = softmax((a + g) /
// tau) with a = logits / temperature and g the noise.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "cpu/capability.h"

namespace lepo {

// Entries that one call works on. Sums are formed within tiles, then over tiles in order, so that
// they do not depend on how tiles are dealt out to threads.
constexpr int kGumbelSoftmaxTile = 1024;

struct GumbelSoftmaxRow {
  const void* logits;  // [V] of the row
  float inv_temperature;
  float inv_tau;  // 0 if tau is
  bool hard;      // tau = 0: z is one-hot at the first largest q
  PhiloxKey key;
};

// A tile's part in the sums of its row; q = a + g, gap = (q - q_max) / tau, all maxima the tile's.
struct GumbelSoftmaxSums {
  float q_max;
  float a_max;
  float weight_beside_peak;  // sum of exp(gap), without the peak's 1
  float weighted_a;          // sum of exp(gap) (a - a_max)
  float mass;                // sum of exp(a - a_max)
  int64_t peak;              // the first id of q_max
};

// What the weights of a row need: z = exp(gap) z_scale, pi = exp(a - a_max) pi_scale, maxima the
// row's. All NaN, but for the peak, in a row that is all -inf, or holds NaN or +inf.
struct GumbelSoftmaxStatistics {
  double q_max;
  double z_scale;
  double a_max;
  double pi_scale;
  double peak;
};

// Upstream gradients of a row, and what they make of its mixture e.
struct GumbelSoftmaxUpstream {
  float peak_pull;  // E_peak . de
  float deviation;  // (e - E_peak) . de
  float log_prob;   // gradient of the log-probability
};

struct GumbelSoftmaxTileKernels {
  GumbelSoftmaxSums (*sums)(const GumbelSoftmaxRow& row, int64_t first_id, int count);
  // z of the entries, but 0 at the row's peak.
  void (*weights_beside_peak)(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                              int64_t first_id, int count, float* z);
  // Replaces pull = E . de by z; dlogits may be null.
  void (*gradients)(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                    const GumbelSoftmaxUpstream& upstream, int64_t first_id, int count, float* pull,
                    void* dlogits);
};

struct GumbelSoftmaxKernels {
  GumbelSoftmaxTileKernels float32;
  GumbelSoftmaxTileKernels bfloat16;
  GumbelSoftmaxTileKernels float16;
  // Joins the tiles of a row; returns its log-probability, sum of z log pi.
  float (*join)(const GumbelSoftmaxRow& row, const GumbelSoftmaxSums* tiles, int64_t count,
                GumbelSoftmaxStatistics* known);
};

LEPO_DECLARE_KERNELS(GumbelSoftmaxKernels, gumbel_softmax_kernels)

}  // namespace lepo
