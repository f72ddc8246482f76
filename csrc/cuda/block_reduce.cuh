// Reductions and scans over the threads of a warp and of a block.
//
// Contract: every thread of the warp or block calls, and all get the result. The order of
// combination is fixed by thread numbers: lower threads on the left, the same tree every time. So
// the bits do not change from run to run, and `combine` must be associative but need not commute.
// A block function uses `scratch`, shared memory of kThreads / 32 values, and leaves it free to be
// used again at once: two barriers each.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/runtime.cuh"

namespace lepo {

struct Sum {
  template <typename T>
  LEPO_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN if any value is NaN.
struct Max {
  LEPO_DEVICE float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

// Of the numbers x_i seen so far: their maximum m, the sum of exp(x_i - m), and the sum of
// exp(x_i - m) (x_i - m). A NaN or +inf among them makes the sums NaN; -inf adds nothing.
struct LogSumExp {
  float max;
  float sum;
  float weighted;

  LEPO_DEVICE float value() const { return max + logf(sum); }
  // The entropy of softmax(x).
  LEPO_DEVICE float entropy() const { return logf(sum) - weighted / sum; }
};

constexpr LogSumExp kEmptyLogSumExp = {-INFINITY, 0.0f, 0.0f};

// What `state` is when its exponents are taken from `max`, which is not smaller.
LEPO_DEVICE LogSumExp rescaled(const LogSumExp& state, float max) {
  // Equal maxima may both be infinite: their difference would be NaN.
  if (state.max == max) return state;
  const float shift = state.max - max;
  const float scale = __expf(shift);
  // Where the scale underflows the shift may be infinite: no 0 times infinity.
  const float moved = scale > 0.0f ? scale * shift * state.sum : 0.0f;
  return {max, state.sum * scale, state.weighted * scale + moved};
}

struct MergeLogSumExp {
  LEPO_DEVICE LogSumExp operator()(const LogSumExp& a, const LogSumExp& b) const {
    const float max = fmaxf(a.max, b.max);
    const LogSumExp left = rescaled(a, max);
    const LogSumExp right = rescaled(b, max);
    return {max, left.sum + right.sum, left.weighted + right.weighted};
  }
};

// `state` with x added.
LEPO_DEVICE LogSumExp with(const LogSumExp& state, float x) {
  if (x == -INFINITY) return state;
  const float max = fmaxf(state.max, x);
  const LogSumExp old = rescaled(state, max);
  const float shift = x - max;
  const float weight = __expf(shift);
  return {max, old.sum + weight, old.weighted + (weight > 0.0f ? weight * shift : 0.0f)};
}

template <typename T>
LEPO_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}

LEPO_DEVICE LogSumExp shuffle_xor(const LogSumExp& state, int lane_mask) {
  return {shuffle_xor(state.max, lane_mask), shuffle_xor(state.sum, lane_mask),
          shuffle_xor(state.weighted, lane_mask)};
}

LEPO_DEVICE int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarpSize; }
LEPO_DEVICE int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// Over groups of kLanes neighbours.
template <int kLanes = kWarpSize, typename T, typename Combine>
LEPO_DEVICE T warp_reduce(T value, Combine combine) {
  LEPO_UNROLL
  for (int step = 1; step < kLanes; step *= 2) {
    const T other = shuffle_xor(value, step);
    value = (lane_of_thread() & step) != 0 ? combine(other, value) : combine(value, other);
  }
  return value;
}

template <int kThreads, typename T, typename Combine>
LEPO_DEVICE T block_reduce(T value, Combine combine,
                           std::common_type_t<T>* scratch) {  // [kThreads / 32], T is not deduced
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && (kWarps & (kWarps - 1)) == 0, "a power of two");
  value = warp_reduce(value, combine);
  if (lane_of_thread() == 0) scratch[warp_of_thread()] = value;
  __syncthreads();
  // Every warp reduces the warps' values for itself: cheaper than to wait for one that does.
  value = scratch[lane_of_thread() % kWarps];
  __syncthreads();
  return warp_reduce<kWarps>(value, combine);
}

// The sum over all threads before this one; `total` gets that over all.
template <int kThreads, typename T>
LEPO_DEVICE T block_exclusive_sum(T value,
                                  std::common_type_t<T>* scratch,  // [kThreads / 32]
                                  T& total) {
  constexpr int kWarps = kThreads / kWarpSize;
  T inclusive = value;
  LEPO_UNROLL
  for (int step = 1; step < kWarpSize; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane_of_thread() >= step) inclusive += before;
  }
  if (lane_of_thread() == kWarpSize - 1) scratch[warp_of_thread()] = inclusive;
  __syncthreads();
  T before_warp = 0;
  total = 0;
  LEPO_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_of_thread()) before_warp += scratch[warp];
    total += scratch[warp];
  }
  __syncthreads();
  return before_warp + inclusive - value;
}

}  // namespace lepo
