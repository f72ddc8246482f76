// Log-sum-exp and entropy of a row, from the units of row_tiles.cuh.
//
// Contract: a unit's state depends on its 512 entries alone, and the states are merged in an order
// that depends on their number alone: not on which blocks made them, nor on the size of the block
// that merges. Terms and sums of a unit are float32, sums over units float64. A row that is all
// -inf, or holds NaN or +inf, has NaN for both.
#pragma once

#include <cfloat>

#include "cuda/block_reduce.cuh"
#include "cuda/row_tiles.cuh"

namespace lepo {

// a = logit / temperature, rounded as the reference rounds it: no fused multiply-add.
LEPO_DEVICE float tempered(float logit, float inv_temperature) {
  return __fmul_rn(logit, inv_temperature);
}

struct Larger {
  template <typename T>
  LEPO_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// exp(x) for x <= 0, or 0 where that is below FLT_MIN; exactly 1 at 0. NaN stays.
LEPO_DEVICE float exp_or_zero(float x) {
#if defined(__CUDACC__)
  // __expf, without the care that it takes of subnormal results.
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
#else
  const float y = __expf(x);
  return y < FLT_MIN ? 0.0f : y;
#endif
}

// Below, a term is 0: its distance does not matter, but may not be infinite.
constexpr float kMostNegativeShift = -128.0f;

// A lane's entries of a unit, tempered: entry 8 i + j is entry j of its octet i.
struct TemperedUnit {
  float a[kLaneEntries];
};

template <typename T>
LEPO_DEVICE TemperedUnit tempered(const Unit<T>& unit, float inv_temperature) {
  TemperedUnit x;
  LEPO_UNROLL
  for (int i = 0; i < kUnitOctets; ++i) {
    LEPO_UNROLL
    for (int j = 0; j < kOctetEntries; ++j) {
      x.a[i * kOctetEntries + j] = tempered(entry(unit.octet[i], j), inv_temperature);
    }
  }
  return x;
}

// Finite where all is -inf, so that there is no inf - inf; leaves NaN out: the sums will tell.
LEPO_DEVICE float largest_of(const TemperedUnit& unit) {
  float largest = -INFINITY;
  LEPO_UNROLL
  for (const float a : unit.a) largest = fmaxf(largest, a);
  LEPO_UNROLL
  for (int step = 1; step < kWarpSize; step *= 2) {
    largest = fmaxf(largest, shuffle_xor(largest, step));
  }
  return fmaxf(largest, -FLT_MAX);
}

// The state of a unit of which `max` is the largest entry.
LEPO_DEVICE LogSumExp unit_statistics(const TemperedUnit& unit, float max) {
  float sum = 0.0f;
  float weighted = 0.0f;
  LEPO_UNROLL
  for (const float a : unit.a) {
    const float shift = a - max;
    const float term = exp_or_zero(shift);
    sum += term;
    weighted = __fmaf_rn(term, fmaxf(shift, kMostNegativeShift), weighted);
  }
  return {max, warp_reduce(sum, Sum{}), warp_reduce(weighted, Sum{})};
}

struct RowStatistics {
  float lse;
  float entropy;
  LEPO_DEVICE bool good() const { return fabsf(lse) <= FLT_MAX; }
};

// Threads that merge: the same in a block of any size.
constexpr int kMergeThreads = 128;

// The states may come from other blocks, which a fence and an atomic order before.
template <int kThreads>
LEPO_DEVICE RowStatistics merge_units(const LogSumExp* units,  // [count]
                                      int count,
                                      double* scratch) {  // [kThreads / 32]
  static_assert(kThreads >= kMergeThreads, "the order of sums would be another");
  const int first = threadIdx.x < kMergeThreads ? static_cast<int>(threadIdx.x) : count;
  double top = -FLT_MAX;
  for (int i = first; i < count; i += kMergeThreads) {
    top = Larger{}(double{__ldcg(&units[i].max)}, top);
  }
  top = block_reduce<kThreads>(top, Larger{}, scratch);
  double mass = 0;
  double shift = 0;
  for (int i = first; i < count; i += kMergeThreads) {
    const double distance = __ldcg(&units[i].max) - top;
    const double scale = expf(static_cast<float>(distance));
    const double sum = __ldcg(&units[i].sum);
    mass += scale * sum;
    shift += scale * (__ldcg(&units[i].weighted) + distance * sum);
  }
  mass = block_reduce<kThreads>(mass, Sum{}, scratch);
  shift = block_reduce<kThreads>(shift, Sum{}, scratch);
  const double log_mass = log(mass);
  const RowStatistics row{static_cast<float>(top + log_mass),
                          static_cast<float>(log_mass - shift / mass)};
  return row.good() ? row : RowStatistics{NAN, NAN};
}

}  // namespace lepo
