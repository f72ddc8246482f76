// The latent draw: truncate, perturb, weigh.
//
// Contract: of logits [rows, vocab] it writes all fields of LatentSample. Every number of a row
// depends on the row alone: not on the batch, the splits, the row's address or its element type;
// deterministic. The set of the top k and its order are exact, ties by id; sums are as
// row_statistics.cuh and latent_row.cuh say.
//
// Narrow, k <= 64: `splits` blocks share a row, each takes a range of its tiles. The logits are
// read once, by 16-byte loads, the next tile's while this one is worked on. The last block of a row
// to finish merges what the others left in the workspace (k entries each, and the states of units)
// and draws. Nothing is waited for.
// Wide, any k: one block per row reads it once for the statistics, then two to six times to select
// the k-th entry, and once more to collect; it sorts in the workspace, tile by tile.
#pragma once

#include "cuda/bitonic_sort.cuh"
#include "cuda/candidates.cuh"
#include "cuda/excluded_ids.cuh"
#include "cuda/latent_row.cuh"
#include "cuda/row_statistics.cuh"

namespace lepo {

// What blocks leave for each other.
struct LatentWorkspace {
  LogSumExp* units;   // [rows, units of whole tiles]
  uint64_t* entries;  // [rows, splits (1 if wide), next_power_of_two(top_k)]
  unsigned* tickets;  // [rows], all 0 where blocks share a row
};

template <typename T>
LEPO_DEVICE Row<T> row_of(const cuda::SampleLatent& problem, int64_t row) {
  return {static_cast<const T*>(problem.logits) + row * problem.row_stride, problem.vocab};
}

LEPO_DEVICE float inv_temperature_of(const cuda::SampleLatent& problem, int64_t row) {
  return 1.0f / of_row<float>(problem.temperature, row);
}

LEPO_DEVICE int units_of(int vocab) { return (vocab + kUnitEntries - 1) / kUnitEntries; }

// blockIdx.x, read again at each call: it need not stay in a register in between.
LEPO_DEVICE unsigned block_number() {
#if defined(__CUDACC__)
  unsigned number;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
  return number;
#else
  return blockIdx.x;
#endif
}

// --- Narrow -------------------------------------------------------------------------------------

constexpr int kNarrowThreads = 128;
constexpr int kNarrowWarps = kNarrowThreads / kWarpSize;
constexpr int kNarrowTile = kNarrowWarps * kTileUnits * kUnitEntries;

// Blocks on a multiprocessor, as registers allow: the next tile is 64 or 128 bytes of a lane.
template <typename T>
constexpr int kNarrowBlocks = sizeof(T) == 2 ? 8 : 5;

// A unit behind the end of any row: it costs no load.
constexpr int kBehindAll = (1 << 26) / kUnitEntries;

struct NarrowScratch {
  Candidates found;
  LatentScratch<kNarrowThreads> latent;
  bool last;
};

// The largest number below a bound, or -inf.
LEPO_DEVICE float just_below(float x) {
  const uint32_t key = monotone_key(x);
  if (x == -INFINITY) return x;
  // Zeros of both signs are equal.
  return value_of_key(key - (x == 0.0f ? 2 : 1));
}

// The work of one block on its range of tiles.
template <typename T>
class NarrowScan {
 public:
  LEPO_DEVICE NarrowScan(const cuda::SampleLatent& problem, int64_t row, NarrowScratch& scratch)
      : problem_(problem),
        row_(row_of<T>(problem, row)),
        inv_temperature_(inv_temperature_of(problem, row)),
        scratch_(scratch) {}

  // Leaves the states of units, and the candidates of these tiles.
  LEPO_DEVICE void run(int begin, int end, LogSumExp* units) {  // of the row
    Unit<T> next[kTileUnits];
    LEPO_UNROLL
    for (int i = 0; i < kTileUnits; ++i) next[i] = load_unit(row_, first_unit(begin) + i);
    begin_candidates<kNarrowThreads>(best_of_tile(begin, next), problem_.top_k, scratch_.found);
    bool first = true;
    for (int tile = begin; tile < end; ++tile) {
      // Ids ascend: in later tiles, an entry equal to the bound's value comes behind the k that
      // reach it.
      float below = value_of_entry(scratch_.found.bound);
      if (first) below = just_below(below);
      uint32_t pending = 0;
      LEPO_UNROLL
      for (int i = 0; i < kTileUnits; ++i) {
        const TemperedUnit unit = tempered(next[i], inv_temperature_);
        const float largest = largest_of(unit);
        // Before the sums: then the entries' registers are free for their terms.
        if (largest > below) pending |= entries_above(unit, below) << (i * kLaneEntries);
        const LogSumExp state = unit_statistics(unit, largest);
        if (lane_of_thread() == 0) units[first_unit(tile) + i] = state;
        next[i] = load_unit(row_, tile + 1 < end ? first_unit(tile + 1) + i : kBehindAll);
      }
      if (__any_sync(kAllLanes, pending != 0)) pending &= ~excluded(tile);
      const auto entry_here = [&](int i) { return entry_at(tile, i); };
      if (first) pending = reaching(pending, entry_here, scratch_.found.bound);
      offer<kNarrowThreads>(pending, entry_here, problem_.top_k, scratch_.found);
      first = false;
    }
  }

 private:
  LEPO_DEVICE static int first_unit(int tile) {
    return (tile * kNarrowWarps + warp_of_thread()) * kTileUnits;
  }

  // The lane's entry `i` of a tile, read again: it is in the cache, and few are asked for.
  LEPO_DEVICE uint64_t entry_at(int tile, int i) const {
    const int unit = first_unit(tile) + i / kLaneEntries;
    const int id = first_of_octet(unit, i / kOctetEntries % kUnitOctets) + i % kOctetEntries;
    return entry_of(tempered(widen(row_.entries[id]), inv_temperature_), id, row_.count - 1);
  }

  // The bits of the lane's entries of a tile that are excluded; the whole warp calls.
  LEPO_DEVICE uint32_t excluded(int tile) const {
    return excluded_of_lane(problem_.exclude_ids, problem_.exclude_count,
                            first_unit(tile) * kUnitEntries);
  }

  // The lane's best entry of a tile; 0 if all are -inf or excluded.
  LEPO_DEVICE uint64_t best_of_tile(int tile, const Unit<T> (&units)[kTileUnits]) {
    const uint32_t candidates = ~excluded(tile);
    float best = -INFINITY;
    int at = -1;
    LEPO_UNROLL
    for (int i = 0; i < kTileUnits; ++i) {
      const TemperedUnit unit = tempered(units[i], inv_temperature_);
      LEPO_UNROLL
      for (int j = 0; j < kLaneEntries; ++j) {
        const int number = i * kLaneEntries + j;
        if ((candidates >> number & 1u) != 0 && unit.a[j] > best) {
          best = unit.a[j];
          at = number;
        }
      }
    }
    return at < 0 ? 0 : entry_at(tile, at);
  }

  LEPO_DEVICE static uint32_t entries_above(const TemperedUnit& unit, float below) {
    uint32_t above = 0;
    LEPO_UNROLL
    for (int i = 0; i < kLaneEntries; ++i) {
      if (unit.a[i] > below) above |= 1u << i;
    }
    return above;
  }

  const cuda::SampleLatent& problem_;
  const Row<T> row_;
  const float inv_temperature_;
  NarrowScratch& scratch_;
};

// Whether all other blocks of the row have left their results: they are then visible.
LEPO_DEVICE bool last_to_arrive(unsigned* ticket, int arrivals, bool& last) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(ticket, 1u) == static_cast<unsigned>(arrivals) - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Room for the k best of a part. A power of two, so that no division finds an entry's place.
LEPO_DEVICE int part_size(int k) { return next_power_of_two(k); }

// The candidates of a row from those of its parts.
LEPO_DEVICE void merge_parts(const uint64_t* parts,  // [splits, part_size(k)], 0 behind the k best
                             int splits, int k, Candidates& found) {
  // Neighbours in a part are about equal: a thread looks at other places in each part, so that the
  // threads' best entries spread and bound well.
  constexpr int kTurn = 13;
  const int size = part_size(k);
  const int size_bits = __popc(static_cast<unsigned>(size) - 1);
  const auto entry_at = [&](int i) {
    const int at = static_cast<int>(threadIdx.x) + i * kNarrowThreads;
    const int part = at >> size_bits;
    const int place = (at + part * kTurn) & (size - 1);
    return part < splits ? __ldcg(parts + part * size + place) : uint64_t{0};
  };
  const int most = (splits * size + kNarrowThreads - 1) / kNarrowThreads;
  uint64_t best = 0;
  // Several loads on their way at a time.
  LEPO_UNROLL_BY(4)
  for (int i = 0; i < most; ++i) best = Larger{}(entry_at(i), best);
  begin_candidates<kNarrowThreads>(best, k, found);
  const uint64_t bound = found.bound;
  uint32_t pending = 0;
  LEPO_UNROLL_BY(4)
  for (int i = 0; i < most; ++i) pending |= (entry_at(i) >= bound ? 1u : 0u) << i;
  offer<kNarrowThreads>(pending, entry_at, k, found);
}

// What a block does, and on what.
class NarrowBlock {
 public:
  LEPO_DEVICE NarrowBlock(const cuda::SampleLatent& problem, const LatentWorkspace& workspace)
      : problem_(problem),
        row_(block_number() / static_cast<unsigned>(problem.splits)),
        split_(static_cast<int>(block_number() % static_cast<unsigned>(problem.splits))),
        units_(workspace.units + row_ * (tiles() * kNarrowWarps * kTileUnits)),
        parts_(workspace.entries + row_ * (problem.splits * part_size(problem.top_k))),
        ticket_(workspace.tickets + row_) {}

  template <typename T>
  LEPO_DEVICE void scan(NarrowScratch& scratch) const {
    const int splits = problem_.splits;
    NarrowScan<T>(problem_, row_, scratch)
        .run(tiles() * split_ / splits, tiles() * (split_ + 1) / splits, units_);
  }

  LEPO_DEVICE void finish(NarrowScratch& scratch) const {
    const int k = problem_.top_k;
    Candidates& found = scratch.found;
    int best = best_candidates<kNarrowThreads>(k, found);
    if (problem_.splits > 1) {
      const int size = part_size(k);
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kNarrowThreads) {
        parts_[split_ * size + i] = i < best ? found.entries[i] : 0;
      }
      if (!last_to_arrive(ticket_, problem_.splits, scratch.last)) return;
      merge_parts(parts_, problem_.splits, k, found);
      best = best_candidates<kNarrowThreads>(k, found);
    }
    const RowStatistics statistics =
        merge_units<kNarrowThreads>(units_, units_of(problem_.vocab), scratch.latent.sums);
    LatentWriter<kNarrowThreads>(problem_, row_, found.entries, best, scratch.latent)
        .write(statistics);
  }

 private:
  LEPO_DEVICE int tiles() const { return (problem_.vocab + kNarrowTile - 1) / kNarrowTile; }

  const cuda::SampleLatent& problem_;
  const int64_t row_;
  const int split_;
  LogSumExp* const units_;  // [units]
  uint64_t* const parts_;   // [splits, part_size(k)]
  unsigned* const ticket_;
};

template <typename T>
__global__ void __launch_bounds__(kNarrowThreads, kNarrowBlocks<T>)
    narrow_latent_kernel(const cuda::SampleLatent problem, const LatentWorkspace workspace) {
  LEPO_SHARED(NarrowScratch, scratch, 1);
  NarrowBlock(problem, workspace).scan<T>(scratch[0]);
  // Not the same object: its registers serve the scan.
  NarrowBlock(problem, workspace).finish(scratch[0]);
}

// --- Wide ---------------------------------------------------------------------------------------

constexpr int kWideThreads = 512;
constexpr int kWideWarps = kWideThreads / kWarpSize;
constexpr int kWideTile = kWideWarps * kTileUnits * kUnitEntries;
// Blocks on a multiprocessor, as registers allow.
template <typename T>
constexpr int kWideBlocks = sizeof(T) == 2 ? 2 : 1;
// Entries that are sorted in shared memory: 32 KiB.
constexpr int kSortTile = 4096;

struct WideScratch {
  RadixScratch<kWideThreads> radix;
  uint64_t tile[kSortTile];
  LatentScratch<kWideThreads> latent;
};

// visit(id, a) for each of the calling thread's entries; excluded ones are -inf.
template <typename T, typename Visit>
LEPO_DEVICE void visit_kept(const cuda::SampleLatent& problem, const Row<T>& row,
                            float inv_temperature, Visit visit) {
  for (int tile = 0; tile * kWideTile < row.count; ++tile) {
    const int first_unit = (tile * kWideWarps + warp_of_thread()) * kTileUnits;
    uint32_t dropped =
        excluded_of_lane(problem.exclude_ids, problem.exclude_count, first_unit * kUnitEntries);
    for (int i = 0; i < kTileUnits * kUnitOctets; ++i, dropped >>= kOctetEntries) {
      const int id = first_of_octet(first_unit + i / kUnitOctets, i % kUnitOctets);
      const Octet<T> octet = load_octet(row, id);
      LEPO_UNROLL
      for (int j = 0; j < kOctetEntries; ++j) {
        if (id + j >= row.count) break;
        const float a = tempered(entry(octet, j), inv_temperature);
        visit(id + j, (dropped >> j & 1u) != 0 ? -INFINITY : a);
      }
    }
  }
}

// How many of the sorted entries are above -inf.
LEPO_DEVICE int count_real(const uint64_t* entries, int k) {
  int low = 0;
  for (int high = k; low < high;) {
    const int middle = (low + high) / 2;
    if (entries[middle] > kNoBound) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename T>
__global__ void __launch_bounds__(kWideThreads, kWideBlocks<T>)
    wide_latent_kernel(const cuda::SampleLatent problem, const LatentWorkspace workspace) {
  LEPO_SHARED(WideScratch, scratch, 1);
  const int64_t index = blockIdx.x;
  const Row<T> row = row_of<T>(problem, index);
  const float inv_temperature = inv_temperature_of(problem, index);
  const int count = units_of(problem.vocab);
  LogSumExp* const units = workspace.units + index * count;
  for (int unit = warp_of_thread(); unit < count; unit += kWideWarps) {
    const TemperedUnit entries = tempered(load_unit(row, unit), inv_temperature);
    const LogSumExp state = unit_statistics(entries, largest_of(entries));
    if (lane_of_thread() == 0) units[unit] = state;
  }
  uint64_t* const entries = workspace.entries + index * next_power_of_two(problem.top_k);
  const auto visit = [&](auto f) { visit_kept(problem, row, inv_temperature, f); };
  radix_select<kWideThreads>(visit, row.count, problem.top_k, entries, scratch[0].radix);
  sort_long_entries<kWideThreads, kSortTile>(entries, problem.top_k, scratch[0].tile);
  const RowStatistics statistics = merge_units<kWideThreads>(units, count, scratch[0].latent.sums);
  LatentWriter<kWideThreads>(problem, index, entries, count_real(entries, problem.top_k),
                             scratch[0].latent)
      .write(statistics);
}

}  // namespace lepo
