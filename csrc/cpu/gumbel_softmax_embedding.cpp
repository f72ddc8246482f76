// The Gumbel-softmax weights of a row, a tile of the vocabulary at a time.
//
// Contract: logits in float32, bfloat16 or float16, arithmetic in float32, sums over tiles in
// float64. A call reads its entries once and keeps a tile of a and q in the first-level cache; the
// noise is drawn anew by every call. Nothing outside of the entries is read or written.
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

// a and q of the entries, -inf in the lanes behind them. Never inlined: all callers must see the
// same bits, or q could exceed the maximum that an earlier call found.
template <typename T>
__attribute__((noinline, noclone)) void perturb(const GumbelSoftmaxRow& row, int64_t first_id,
                                                int count, Tile& tile) {
  const T* logits = static_cast<const T*>(row.logits) + first_id;
  for (int i = 0; i < count; i += kNoiseWidth) {
    const WidePhiloxBlock words =
        philox_words_in_order(row.key, static_cast<uint32_t>(first_id) + i, 0);
    for (int part = 0; part < 4; ++part) {
      const int at = i + part * kLanes;
      const F32 a = load_up_to(logits + at, count - at, -INFINITY) * row.inv_temperature;
      store(tile.a + at, a);
      store(tile.q + at, a + gumbel_from_words(words.word[part]));
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
GumbelSoftmaxSums sums(const GumbelSoftmaxRow& row, int64_t first_id, int count) {
  Tile tile;
  perturb<T>(row, first_id, count, tile);
  F32 q_top = broadcast(-INFINITY);
  F32 a_top = broadcast(-INFINITY);
  for (int i = 0; i < count; i += kLanes) {
    q_top = max(load(tile.q + i), q_top);
    a_top = max(load(tile.a + i), a_top);
  }
  GumbelSoftmaxSums out{max_lanes(q_top), max_lanes(a_top), 0.0f, 0.0f, 0.0f, 0};
  const int64_t peak = first_of(tile.q, out.q_max, count);
  const float q_from = finite_or_zero(out.q_max);
  const float a_from = finite_or_zero(out.a_max);
  const float peak_a = tile.a[peak] - a_from;
  // Beside the 1 of the peak, a sum would lose what is far below it.
  tile.q[peak] = -INFINITY;
  F32 weight{};
  F32 weighted_a{};
  F32 mass{};
  for (int i = 0; i < count; i += kLanes) {
    const F32 shifted = load(tile.a + i) - a_from;
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
  out.peak = first_id + peak;
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
  for (int64_t i = 0; i < count; ++i) {
    const GumbelSoftmaxSums& tile = tiles[i];
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
  *known = {q_max + spoil, 1.0 / (1.0 + rest) + spoil, a_max + spoil, 1.0 / mass + spoil,
            static_cast<double>(peak)};
  return static_cast<float>(log_prob + spoil);
}

// Turns the q of a tile into z, with a value of the caller's at the row's peak.
void weigh(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known, int64_t first_id,
           int count, float at_peak, Tile& tile) {
  const auto q_max = static_cast<float>(known.q_max);
  const auto scale = static_cast<float>(known.z_scale);
  for (int i = 0; i < count; i += kLanes) {
    const F32 gap = (load(tile.q + i) - q_max) * row.inv_tau;
    store(tile.q + i, row.hard ? F32{} : drop_specks(exp_or_zero(gap) * scale));
  }
  const int64_t peak = static_cast<int64_t>(known.peak) - first_id;
  if (peak >= 0 && peak < count) tile.q[peak] = at_peak;
}

template <typename T>
void weights_beside_peak(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
                         int64_t first_id, int count, float* z) {
  Tile tile;
  perturb<T>(row, first_id, count, tile);
  // 0, or NaN in a spoilt row.
  const float nothing = static_cast<float>(known.z_scale - known.z_scale);
  weigh(row, known, first_id, count, nothing, tile);
  std::memcpy(z, tile.q, count * sizeof(float));
}

template <typename T>
void gradients(const GumbelSoftmaxRow& row, const GumbelSoftmaxStatistics& known,
               const GumbelSoftmaxUpstream& upstream, int64_t first_id, int count, float* pull,
               void* dlogits) {
  Tile tile;
  perturb<T>(row, first_id, count, tile);
  weigh(row, known, first_id, count, static_cast<float>(known.z_scale), tile);
  if (dlogits != nullptr) {
    const int64_t peak = static_cast<int64_t>(known.peak) - first_id;
    // So that the difference below is exactly 0 at the peak, where z may be 1.
    if (peak >= 0 && peak < count) pull[peak] = upstream.peak_pull;
    T* out = static_cast<T*>(dlogits) + first_id;
    const auto a_max = static_cast<float>(known.a_max);
    const auto pi_scale = static_cast<float>(known.pi_scale);
    for (int i = 0; i < count; i += kLanes) {
      const F32 z = load(tile.q + i);
      const F32 pi = drop_specks(exp_or_zero(load(tile.a + i) - a_max) * pi_scale);
      const F32 pulled = load_up_to(pull + i, count - i, 0.0f) - upstream.peak_pull;
      const F32 da = z * (pulled - upstream.deviation) * row.inv_tau + upstream.log_prob * (z - pi);
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
