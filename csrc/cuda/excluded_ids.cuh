// Which of a warp's entries are excluded.
#pragma once

#include "cuda/row_tiles.cuh"

namespace lepo {

// A warp's part of a tile: a bit of a word for each entry of a lane.
constexpr int kTileUnits = 2;
constexpr int kTileLaneEntries = kTileUnits * kLaneEntries;
static_assert(kTileLaneEntries == 32, "as many bits as a word has");

// Those of the calling lane, in the two units from entry `first` on: bit 8 i + j is entry j of its
// octet i. The whole warp calls. It reads all ids, but only those inside cost more than a glance.
LEPO_DEVICE uint32_t excluded_of_lane(const int64_t* __restrict__ ids,  // [count], any
                                      int count, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t mine = 0;
  LEPO_ROLLED
  for (int begin = 0; begin < count; begin += kWarpSize) {
    const int64_t id = begin + lane < count ? ids[begin + lane] : -1;
    const bool inside = id >= first && id < first + kTileUnits * kUnitEntries;
    const int place = inside ? static_cast<int>(id) - first : 0;
    LEPO_ROLLED
    for (unsigned found = __ballot_sync(kAllLanes, inside); found != 0; found &= found - 1) {
      const int at = __shfl_sync(kAllLanes, place, __ffs(static_cast<int>(found)) - 1);
      const int octet = at / kOctetEntries;
      if (octet % kWarpSize != lane) continue;
      mine |= 1u << (octet / kWarpSize * kOctetEntries + at % kOctetEntries);
    }
  }
  return mine;
}

}  // namespace lepo
