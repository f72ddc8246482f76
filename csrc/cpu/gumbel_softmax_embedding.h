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
  uint32_t first_id;  // the vocabulary id of column 0, a multiple of 4
};

// A tile's part in the sums of its row; q = a + g, gap = (q - q_max) / tau, all maxima the tile's.
// X = exp(-g) is the exponential number that the noise is made of.
struct GumbelSoftmaxSums {
  float q_max;
  float a_max;
  float weight_beside_peak;  // sum of exp(gap), without the peak's 1
  float weighted_a;          // sum of exp(gap) (a - a_max)
  float mass;                // sum of exp(a - a_max)
  float exponential;         // sum of X where a is not -inf
  float log_exponential;     // sum of log X there
  int32_t support;           // how many entries that are
  int64_t peak;              // the first column of q_max
};

// What the weights of a row need: z = exp(gap) z_scale, pi = exp(a - a_max) pi_scale, maxima the
// row's; and what its log-density does. All NaN, but for peak and support, in a row that is all
// -inf, or holds NaN or +inf.
struct GumbelSoftmaxStatistics {
  double q_max;
  double z_scale;
  double a_max;
  double pi_scale;
  double peak;             // a column; any number outside of them if it is not among them
  double support;          // how many entries are not -inf
  double inv_exponential;  // 1 / sum of X over those
  double log_exponential;  // sum of log X over those
};

// Upstream gradients of a row, and what they make of its mixture e.
struct GumbelSoftmaxUpstream {
  float mixture;      // e . de
  float deviation;    // (e - E_peak) . de
  float log_prob;     // gradient of the log-probability
  float log_density;  // gradient of the log-density; 0 if the row's has none
};

// Each works on the columns [first, first + count).
struct GumbelSoftmaxTileKernels {
  GumbelSoftmaxSums (*sums)(const GumbelSoftmaxRow& row, int64_t first, int count);
  // z of the entries, but 0 at the row's peak.
  void (*weights_beside_peak)(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                              int64_t first, int count, float* z);
  // Replaces pull = E . de by z; dlogits may be null.
  void (*gradients)(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                    const GumbelSoftmaxUpstream& upstream, int64_t first, int count, float* pull,
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
