// The k largest of a row, ordered by (value descending, id ascending), by one block.
//
// Contract: an entry is the 64-bit number (monotone key of its value, then its id reversed), so all
// entries differ and the set of the k largest is unique: ties go to low ids, NaN counts as larger
// than +inf, and zeros of both signs are equal, as in torch.sort. Radix selection from the highest
// bits on: each pass visits the whole row, counts one digit of up to 11 bits in shared memory and
// keeps the bin that holds the k-th entry. It ends as soon as that bin is taken whole: mostly after
// two or three passes, at most after three for the values and three for the ids. One more pass
// collects. The counts are integers, so results are deterministic; collected entries come in any
// order until they are sorted.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/runtime.cuh"

namespace lepo {

constexpr int kRadixBits = 11;
constexpr int kRadixBins = 1 << kRadixBits;
constexpr int kRadixPasses = 6;

// Larger keys for larger values: NaN > +inf > ... > +0 = -0 > ... > -inf > 0.
LEPO_DEVICE uint32_t monotone_key(float x) {
  if (x != x) return 0xFFFFFFFFu;
  // The sum makes +0 of -0.
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

LEPO_DEVICE float value_of_key(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// `last` is the highest id of the row: reversed ids are small numbers.
LEPO_DEVICE uint64_t entry_of(float x, int id, int last) {
  return uint64_t{monotone_key(x)} << 32 | static_cast<uint32_t>(last - id);
}
LEPO_DEVICE float value_of_entry(uint64_t entry) {
  return value_of_key(static_cast<uint32_t>(entry >> 32));
}
LEPO_DEVICE int id_of_entry(uint64_t entry, int last) {
  return last - static_cast<int>(static_cast<uint32_t>(entry));
}

// In shared memory.
template <int kThreads>
struct RadixScratch {
  int bins[kRadixBins];
  int warp_sums[kThreads / kWarpSize];
  int digit;  // of the k-th entry
  int above;  // entries in higher bins
  int inside;
  int collected;
};

// Digits of 11, 11 and 10 bits of the key, then of 10, 11 and 11 bits of the reversed id.
LEPO_DEVICE int radix_shift(int pass) {
  return pass < 3 ? (pass == 0 ? 53 : pass == 1 ? 42 : 32) : (pass == 3 ? 22 : pass == 4 ? 11 : 0);
}
LEPO_DEVICE uint64_t radix_digit_mask(int pass) { return pass == 2 || pass == 3 ? 0x3FF : 0x7FF; }

// Finds the bin that holds the entry of rank `needed` (from 1), counted from the highest bin.
template <int kThreads>
LEPO_DEVICE void find_radix_digit(int needed, RadixScratch<kThreads>& scratch) {
  constexpr int kBinsPerThread = kRadixBins / kThreads;
  static_assert(kBinsPerThread * kThreads == kRadixBins, "every thread looks at as many bins");
  const int highest = kRadixBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
  int mine = 0;
  for (int i = 0; i < kBinsPerThread; ++i) mine += scratch.bins[highest - i];
  int total;
  int above = block_exclusive_sum<kThreads>(mine, scratch.warp_sums, total);
  if (above < needed && needed <= above + mine) {
    int bin = highest;
    while (above + scratch.bins[bin] < needed) above += scratch.bins[bin--];
    scratch.digit = bin;
    scratch.above = above;
    scratch.inside = scratch.bins[bin];
  }
  __syncthreads();
}

// The set of the k largest entries: those with (entry & mask) >= prefix.
struct RadixBound {
  uint64_t mask;
  uint64_t prefix;
  LEPO_DEVICE bool holds(uint64_t entry) const { return (entry & mask) >= prefix; }
};

// visit(f) calls f(id, x) for each of the calling thread's elements; 1 <= k <= count.
template <int kThreads, typename Visit>
LEPO_DEVICE RadixBound radix_bound(Visit visit, int count, int k, RadixScratch<kThreads>& scratch) {
  const int last = count - 1;
  RadixBound bound{0, 0};
  int needed = k;
  for (int pass = 0; pass < kRadixPasses; ++pass) {
    const int shift = radix_shift(pass);
    const uint64_t digit_mask = radix_digit_mask(pass);
    const uint64_t mask = bound.mask | digit_mask << shift;
    // A digit that is 0 in all ids of the row.
    if (pass >= 3 && last >> shift == 0) {
      bound.mask = mask;
      continue;
    }
    for (int bin = static_cast<int>(threadIdx.x); bin < kRadixBins; bin += kThreads) {
      scratch.bins[bin] = 0;
    }
    __syncthreads();
    visit([&](int id, float x) {
      const uint64_t entry = entry_of(x, id, last);
      if ((entry & bound.mask) != bound.prefix) return;
      atomicAdd(&scratch.bins[static_cast<int>(entry >> shift & digit_mask)], 1);
    });
    __syncthreads();
    find_radix_digit(needed, scratch);
    bound = {mask, bound.prefix | static_cast<uint64_t>(scratch.digit) << shift};
    needed -= scratch.above;
    if (scratch.inside == needed) break;
  }
  return bound;
}

// Puts the k largest entries, in any order, into `entries` (shared or global memory, room for k).
// They are there, and the scratch is free, after the next barrier: the sorts begin with one.
template <int kThreads, typename Visit>
LEPO_DEVICE void radix_select(Visit visit, int count, int k, uint64_t* entries,  // [k]
                              RadixScratch<kThreads>& scratch) {
  const int last = count - 1;
  if (threadIdx.x == 0) scratch.collected = 0;
  const RadixBound bound = radix_bound<kThreads>(visit, count, k, scratch);
  visit([&](int id, float x) {
    const uint64_t entry = entry_of(x, id, last);
    if (bound.holds(entry)) entries[atomicAdd(&scratch.collected, 1)] = entry;
  });
}

}  // namespace lepo
