// The Gumbel-softmax weights of a row, a tile of the vocabulary at a time.
//
// Contract: logits in float32, bfloat16 or float16, arithmetic in float32, sums over tiles in
// float64. A call reads its entries once and keeps what it draws for a tile in the first-level
// cache; the noise is drawn anew by every call. Nothing outside of the entries is read or written.
// Deterministic: the bits of a row depend on the row alone.
#include "cpu/gumbel_softmax_embedding.h"

#include <math.h>

#include "cpu/element.h"
#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

// What is below is 0 to any sum, and close to float32's subnormals, which are slow.
constexpr float kSpeck = 1e-30f;
constexpr int kNoiseWidth = 4 * kLanes;

struct Tile {
  alignas(64) float a[kGumbelSoftmaxTile];
  alignas(64) float q[kGumbelSoftmaxTile];
  alignas(64) float x[kGumbelSoftmaxTile];      // exponential numbers
  alignas(64) float log_x[kGumbelSoftmaxTile];  // -g
};

template <typename T>
LEPO_INLINE F32 load_up_to(const T* from, int count, float fill) {
  if (count >= kLanes) return load(from);
  return count > 0 ? load_some(from, count, fill) : broadcast(fill);
}

template <typename T>
LEPO_INLINE void store_up_to(T* to, F32 x, int count) {
  if (count >= kLanes) {
    store(to, x);
  } else {
    store_some(to, x, count);
  }
}

// Draws the entries; a and q are -inf in the lanes behind them. Never inlined: all callers must see
// the same bits, or q could exceed the maximum that an earlier call found.
template <typename T>
__attribute__((noinline, noclone)) void perturb(const GumbelSoftmaxRow& row, int64_t first,
                                                int count, Tile& tile) {
  const T* logits = static_cast<const T*>(row.logits) + first;
  for (int i = 0; i < count; i += kNoiseWidth) {
    const WidePhiloxBlock words =
        philox_words_in_order(row.key, row.first_id + static_cast<uint32_t>(first) + i, 0);
    for (int part = 0; part < 4; ++part) {
      const int at = i + part * kLanes;
      const F32 a = load_up_to(logits + at, count - at, -INFINITY) * row.inv_temperature;
      const F32 x = exponential_from_words(words.word[part]);
      const F32 log_x = log(x);
      store(tile.a + at, a);
      store(tile.q + at, a - log_x);
      store(tile.x + at, x);
      store(tile.log_x + at, log_x);
    }
  }
}

LEPO_INLINE F32 drop_specks(F32 x) { return x < kSpeck ? F32{} : x; }

int64_t first_of(const float* values, float wanted, int count) {
  for (int i = 0; i < count; i += kLanes) {
    if (!any(load(values + i) == wanted)) continue;
    for (int at = i; at < count; ++at) {
      if (values[at] == wanted) return at;
    }
  }
  return 0;
}

// The maximum as what exponents are taken from: a tile that is all -inf has exponents of -inf.
float finite_or_zero(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

template <typename T>
GumbelSoftmaxSums sums(const GumbelSoftmaxRow& row, int64_t first, int count) {
  Tile tile;
  perturb<T>(row, first, count, tile);
  F32 q_top = broadcast(-INFINITY);
  F32 a_top = broadcast(-INFINITY);
  for (int i = 0; i < count; i += kLanes) {
    q_top = max(load(tile.q + i), q_top);
    a_top = max(load(tile.a + i), a_top);
  }
  GumbelSoftmaxSums out{};
  out.q_max = max_lanes(q_top);
  out.a_max = max_lanes(a_top);
  const int64_t peak = first_of(tile.q, out.q_max, count);
  const float q_from = finite_or_zero(out.q_max);
  const float a_from = finite_or_zero(out.a_max);
  const float peak_a = tile.a[peak] - a_from;
  // Beside the 1 of the peak, a sum would lose what is far below it.
  tile.q[peak] = -INFINITY;
  F32 weight{};
  F32 weighted_a{};
  F32 mass{};
  F32 exponential{};
  F32 log_exponential{};
  I32 support{};
  for (int i = 0; i < count; i += kLanes) {
    const F32 a = load(tile.a + i);
    const I32 finite = a != -INFINITY;
    exponential += finite ? load(tile.x + i) : F32{};
    log_exponential += finite ? load(tile.log_x + i) : F32{};
    support -= finite;
    const F32 shifted = a - a_from;
    mass += exp_or_zero(shifted);
    if (row.hard) continue;
    const F32 w = exp_or_zero((load(tile.q + i) - q_from) * row.inv_tau);
    weight += w;
    // Where w is 0, a may be -inf.
    weighted_a += w == 0.0f ? F32{} : w * shifted;
  }
  out.weight_beside_peak = sum_lanes(weight);
  out.weighted_a = peak_a + sum_lanes(weighted_a);
  out.mass = sum_lanes(mass);
  out.exponential = sum_lanes(exponential);
  out.log_exponential = sum_lanes(log_exponential);
  for (int lane = 0; lane < kLanes; ++lane) out.support += support[lane];
  out.peak = first + peak;
  return out;
}

float join(const GumbelSoftmaxRow& row, const GumbelSoftmaxSums* tiles, int64_t count,
           GumbelSoftmaxStatistics* known) {
  float q_max = -INFINITY;
  float a_max = -INFINITY;
  int64_t peak = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (tiles[i].q_max > q_max) {
      q_max = tiles[i].q_max;
      peak = tiles[i].peak;
    }
    if (tiles[i].a_max > a_max) a_max = tiles[i].a_max;
  }
  double rest = 0.0;
  double weighted_a = 0.0;
  double mass = 0.0;
  double exponential = 0.0;
  double log_exponential = 0.0;
  int64_t support = 0;
  for (int64_t i = 0; i < count; ++i) {
    const GumbelSoftmaxSums& tile = tiles[i];
    exponential += tile.exponential;
    log_exponential += tile.log_exponential;
    support += tile.support;
    // All -inf. With NaN in it, its mass is NaN.
    if (tile.mass == 0.0f) continue;
    const double below = static_cast<double>(tile.a_max) - a_max;
    mass += ::exp(below) * tile.mass;
    const double gap = (static_cast<double>(tile.q_max) - q_max) * row.inv_tau;
    const bool holds_peak = tile.peak == peak;
    const double share = row.hard ? holds_peak : ::exp(gap);
    if (share == 0.0) continue;
    rest += share * (tile.weight_beside_peak + (holds_peak ? 0.0 : 1.0));
    weighted_a += share * (tile.weighted_a + below * (1.0 + tile.weight_beside_peak));
  }
  const double log_prob = weighted_a / (1.0 + rest) - ::log(mass);
  // NaN if the log-probability is not finite, else 0.
  const double spoil = log_prob - log_prob;
  known->q_max = q_max + spoil;
  known->z_scale = 1.0 / (1.0 + rest) + spoil;
  known->a_max = a_max + spoil;
  known->pi_scale = 1.0 / mass + spoil;
  known->peak = static_cast<double>(peak);
  known->support = static_cast<double>(support);
  known->inv_exponential = 1.0 / exponential + spoil;
  known->log_exponential = log_exponential + spoil;
  return static_cast<float>(log_prob + spoil);
}

// exp(x), which is 1 if x is above 0: logits that are formed anew may exceed the largest that was
// found before.
LEPO_INLINE F32 exp_or_bound(F32 x) { return exp_or_zero(x > 0.0f ? F32{} : x); }

// Turns the q of a tile into z, with a value of the caller's at the row's peak.
void weigh(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known, int64_t first,
           int count, float at_peak, Tile& tile) {
  const auto q_max = static_cast<float>(known.q_max);
  const auto scale = static_cast<float>(known.z_scale);
  for (int i = 0; i < count; i += kLanes) {
    const F32 gap = (load(tile.q + i) - q_max) * row.inv_tau;
    store(tile.q + i, row.hard ? F32{} : drop_specks(exp_or_bound(gap) * scale));
  }
  const int64_t peak = static_cast<int64_t>(known.peak) - first;
  if (peak >= 0 && peak < count) tile.q[peak] = at_peak;
}

template <typename T>
void weights_beside_peak(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                         int64_t first, int count, float* z) {
  Tile tile;
  perturb<T>(row, first, count, tile);
  // 0, or NaN in a spoilt row.
  const float nothing = static_cast<float>(known.z_scale - known.z_scale);
  weigh(row, known, first, count, nothing, tile);
  std::memcpy(z, tile.q, count * sizeof(float));
}

template <typename T>
void gradients(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
               const GumbelSoftmaxUpstream& upstream, int64_t first, int count, float* pull,
               void* dlogits) {
  Tile tile;
  perturb<T>(row, first, count, tile);
  weigh(row, known, first, count, static_cast<float>(known.z_scale), tile);
  if (dlogits != nullptr) {
    float* pulled = tile.log_x;
    for (int i = 0; i < count; i += kLanes) {
      store(pulled + i, load_up_to(pull + i, count - i, 0.0f) - upstream.mixture);
    }
    const int64_t peak = static_cast<int64_t>(known.peak) - first;
    // Where z may be 1, and E_peak . de nearly e . de.
    if (peak >= 0 && peak < count) pulled[peak] = -upstream.deviation;
    T* out = static_cast<T*>(dlogits) + first;
    const auto a_max = static_cast<float>(known.a_max);
    const auto pi_scale = static_cast<float>(known.pi_scale);
    const auto x_scale = static_cast<float>(known.support * known.inv_exponential);
    for (int i = 0; i < count; i += kLanes) {
      const F32 a = load(tile.a + i);
      const F32 z = load(tile.q + i);
      const F32 pi = drop_specks(exp_or_bound(a - a_max) * pi_scale);
      const F32 above = 1.0f - load(tile.x + i) * x_scale;
      const F32 density = a == -INFINITY ? F32{} : above * upstream.log_density;
      const F32 da = z * load(pulled + i) * row.inv_tau + upstream.log_prob * (z - pi) + density;
      store_up_to(out + i, da * row.inv_temperature, count - i);
    }
  }
  std::memcpy(pull, tile.q, count * sizeof(float));
}

template <typename T>
constexpr GumbelSoftmaxTileKernels tile_kernels() {
  return {&sums<T>, &weights_beside_peak<T>, &gradients<T>};
}

}  // namespace

extern const GumbelSoftmaxKernels gumbel_softmax_kernels;
const GumbelSoftmaxKernels gumbel_softmax_kernels = {
    tile_kernels<float>(), tile_kernels<BFloat16>(), tile_kernels<Float16>(), &join};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
