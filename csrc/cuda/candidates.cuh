// The k best of entries that a block offers a tile at a time, k <= 64, in shared memory.
//
// Contract: entries are the 64-bit numbers of radix_select.cuh, -inf is never taken, and the set of
// the best is exact and unique. Entries are collected if they reach a bound that the k-th best of
// all so far reaches, too; when there are many of them, all but the k best go and the bound rises.
// So a tile costs one barrier as long as few entries are above the bound, which soon holds for all
// but rows made to rise.
#pragma once

#include "cuda/bitonic_sort.cuh"
#include "cuda/radix_select.cuh"

namespace lepo {

constexpr int kMostNarrow = 64;       // the largest k
constexpr int kCandidateRoom = 512;   // a power of two
constexpr int kCandidateLimit = 256;  // with more than that, all but k go

// Above all entries of -inf, below all others; its value is -inf.
constexpr uint64_t kNoBound = 0x007FFFFFFFFFFFFFull;

// In shared memory.
struct Candidates {
  uint64_t entries[kCandidateRoom];
  uint64_t bound;
  int size;  // may exceed the room, which is full then

  LEPO_DEVICE int stored() const { return size < kCandidateRoom ? size : kCandidateRoom; }
};

// Begins anew, with a bound from each thread's best entry (0: it has none): the k-th largest of
// these, if there are so many. Nothing is collected yet.
template <int kThreads>
LEPO_DEVICE void begin_candidates(uint64_t best, int k, Candidates& found) {
  static_assert(kMostNarrow <= kThreads && kThreads <= kCandidateRoom, "one best entry a thread");
  found.entries[threadIdx.x] = best;
  if (threadIdx.x == 0) {
    found.size = 0;
    found.bound = kNoBound;
  }
  __syncthreads();
  int above = 0;
  for (int i = 0; i < kThreads; ++i) above += found.entries[i] > best ? 1 : 0;
  if (best != 0 && above == k - 1) found.bound = best;
  __syncthreads();
}

// Keeps the k best; there are more.
template <int kThreads>
LEPO_DEVICE void shrink_candidates(int k, Candidates& found) {
  sort_entries<kThreads>(found.entries, found.stored());
  if (threadIdx.x == 0) {
    found.size = k;
    found.bound = found.entries[k - 1];
  }
  __syncthreads();
}

// Those of the entries in `pending` (bits of numbers below 32) that reach the bound.
template <typename EntryAt>
LEPO_DEVICE uint32_t reaching(uint32_t pending, EntryAt entry_at, uint64_t bound) {
  uint32_t left = 0;
  LEPO_ROLLED
  for (; pending != 0; pending &= pending - 1) {
    if (entry_at(__ffs(static_cast<int>(pending)) - 1) >= bound) left |= pending & (0u - pending);
  }
  return left;
}

// Every thread offers its pending entries, each of which reaches the bound and was never offered
// before. All that are among the k best so far are collected on return.
template <int kThreads, typename EntryAt>
LEPO_DEVICE void offer(uint32_t pending, EntryAt entry_at, int k, Candidates& found) {
  for (;;) {
    int place = 0;
    int end = 0;
    if (pending != 0) {
      const int wanted = __popc(pending);
      place = atomicAdd(&found.size, wanted);
      end = place + wanted;
    }
    LEPO_ROLLED
    for (; pending != 0 && place < kCandidateRoom; pending &= pending - 1) {
      found.entries[place++] = entry_at(__ffs(static_cast<int>(pending)) - 1);
    }
    if (__syncthreads_or(end > kCandidateLimit) == 0) return;
    shrink_candidates<kThreads>(k, found);
    pending = reaching(pending, entry_at, found.bound);
  }
}

// Sorts what was collected, and returns how many of the k best there are.
template <int kThreads>
LEPO_DEVICE int best_candidates(int k, Candidates& found) {
  const int stored = found.stored();
  sort_entries<kThreads>(found.entries, stored);
  return stored < k ? stored : k;
}

}  // namespace lepo
