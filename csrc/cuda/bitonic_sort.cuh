// Sorts 64-bit entries, the largest first, by one block.
//
// Contract: bitonic, in place; the number of places is the next power of two, and those behind the
// entries are filled with 0, which no entry is. Deterministic. `sort_entries` works where the
// entries are. `sort_long_entries` is for global memory: strides within a tile are taken in shared
// memory, so that of n places, n = tile * 2^m, memory is read and written (m + 1)(m + 2) / 2 times
// instead of log2(n) (log2(n) + 1) / 2.
#pragma once

#include <cstdint>

#include "cuda/block_reduce.cuh"
#include "cuda/runtime.cuh"

namespace lepo {

LEPO_DEVICE int next_power_of_two(int x) {
  int power = 1;
  while (power < x) power *= 2;
  return power;
}

// One step: all pairs of entries that lie `stride` apart. Runs of `run` entries fall and rise in
// turn; entries[0] is entry `offset` of the whole.
template <int kThreads>
LEPO_DEVICE void order_pairs(uint64_t* entries, int size, int run, int stride, int offset) {
  LEPO_UNROLL_BY(2)
  for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kThreads) {
    const int low = 2 * pair - (pair & (stride - 1));
    const uint64_t a = entries[low];
    const uint64_t b = entries[low + stride];
    const bool descending = ((low + offset) & run) == 0;
    if ((a < b) == descending) {
      entries[low] = b;
      entries[low + stride] = a;
    }
  }
}

// The steps of strides `stride`, `stride` / 2, ... 1. As long as strides are at most a warp's
// width, a warp stays among entries of its own: then it waits for no other. `next` is the stride
// that comes after these; more than a warp's width where others read the entries.
template <int kThreads>
LEPO_DEVICE void order_runs(uint64_t* entries, int size, int run, int stride, int offset,
                            int next) {
  LEPO_ROLLED
  for (; stride > 0; stride /= 2) {
    order_pairs<kThreads>(entries, size, run, stride, offset);
    if (stride > kWarpSize || (stride > 1 ? stride / 2 : next) > kWarpSize) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
}

// Sorts entries[0], which is entry `offset` of the whole, to entries[size - 1].
template <int kThreads>
LEPO_DEVICE void sort_places(uint64_t* entries, int size, int offset) {
  LEPO_ROLLED
  for (int run = 2; run <= size; run *= 2) {
    order_runs<kThreads>(entries, size, run, run / 2, offset, run < size ? run : kThreads);
  }
}

// What is not there stays behind.
template <int kThreads>
LEPO_DEVICE void fill_places(uint64_t* entries, int k, int size) {
  for (int i = k + static_cast<int>(threadIdx.x); i < size; i += kThreads) entries[i] = 0;
  __syncthreads();
}

// Sorts `entries` (shared or global memory); there is room for next_power_of_two(k). The block may
// read them on return.
template <int kThreads>
LEPO_DEVICE void sort_entries(uint64_t* entries, int k) {
  const int size = next_power_of_two(k);
  fill_places<kThreads>(entries, k, size);
  sort_places<kThreads>(entries, size, 0);
}

// work(first) for each tile of `count` entries, in shared memory: first is its first entry. It ends
// with a barrier.
template <int kThreads, typename Work>
LEPO_DEVICE void for_each_tile(uint64_t* entries, int size, uint64_t* tile, int count, Work work) {
  LEPO_ROLLED
  for (int first = 0; first < size; first += count) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      tile[i] = entries[first + i];
    }
    __syncthreads();
    work(first);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      entries[first + i] = tile[i];
    }
  }
}

// Sorts `entries` in global memory; there is room for next_power_of_two(k). The block may read them
// on return. Of memory, thread t touches places t, t + kThreads, ... alone, of tiles and of pairs
// that lie a tile or more apart: there it waits for no other.
template <int kThreads, int kTile>
LEPO_DEVICE void sort_long_entries(uint64_t* entries, int k,
                                   uint64_t* tile) {  // [kTile], in shared memory
  static_assert(kTile >= kThreads, "pairs a tile apart belong to one thread");
  const int size = next_power_of_two(k);
  const int count = size < kTile ? size : kTile;
  fill_places<kThreads>(entries, k, size);
  for_each_tile<kThreads>(entries, size, tile, count,
                          [&](int first) { sort_places<kThreads>(tile, count, first); });
  LEPO_ROLLED
  for (int run = 2 * kTile; run <= size; run *= 2) {
    LEPO_ROLLED
    for (int stride = run / 2; stride >= kTile; stride /= 2) {
      order_pairs<kThreads>(entries, size, run, stride, 0);
    }
    for_each_tile<kThreads>(entries, size, tile, kTile, [&](int first) {
      order_runs<kThreads>(tile, kTile, run, kTile / 2, first, kThreads);
    });
  }
  __syncthreads();
}

}  // namespace lepo
