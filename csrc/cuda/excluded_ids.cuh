// Which entries of a block's tile are excluded, as bits in shared memory.
#pragma once

#include "cuda/row_tiles.cuh"

namespace lepo {

// A warp's part of a tile: a bit of a word for each entry of a lane.
constexpr int kTileUnits = 2;
constexpr int kTileLaneEntries = kTileUnits * kLaneEntries;
static_assert(kTileLaneEntries == 32, "as many bits as a word has");

// Marks the excluded entries of a tile of kThreads / 32 warps, which begins with entry `first`.
template <int kThreads>
LEPO_DEVICE void mark_excluded(const int64_t* __restrict__ ids,  // [count], any
                               int64_t count, int first,
                               uint32_t* bits) {  // [kThreads], shared
  // The bits of the last tile have been read.
  __syncthreads();
  bits[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const int64_t id = ids[i];
    if (id < first || id >= first + kThreads * 32) continue;
    const int at = static_cast<int>(id) - first;
    atomicOr(&bits[at / 32], 1u << at % 32);
  }
  __syncthreads();
}

// Those of the calling lane: bit 8 i + j is entry j of its octet i.
LEPO_DEVICE uint32_t excluded_of_lane(const uint32_t* bits) {  // [kThreads], shared
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t mine = 0;
  LEPO_UNROLL
  for (int i = 0; i < kTileUnits * kUnitOctets; ++i) {
    const int at = warp * kWarpSize + i * kOctetEntries + lane / 4;
    mine |= (bits[at] >> (lane % 4 * kOctetEntries) & 0xFFu) << (i * kOctetEntries);
  }
  return mine;
}

}  // namespace lepo
