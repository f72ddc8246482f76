// The embedding mixture e = sum_k w_k E[i_k] and its gradients.
//
// Contract: the unit of work is a warp; no shared memory, no barriers, no atomics. All sums are
// formed in float32 and rounded once.
//   Mixture: each column is one chain of fused multiply-adds in the order of k, so its bits depend
//   neither on N nor on alignment. Entries of weight 0 are neither read nor added; the rows of the
//   others are read once, kMixLoads of them at a time.
//   dweights: one warp per entry. A lane adds 16-byte chunks 32 chunks apart, whether it can load
//   them at once or not: the bits are those of the row alone, too.
//   dE: entries come sorted by id, equal ids in the order of the entries. A piece of kPieceEntries
//   of them is one pass by one warp per tile of columns. Ids within one piece are written at once;
//   the sums of an id that pieces share are added in the order of the pieces by a second kernel. So
//   one id in every entry is as parallel as any other input. dE is zero before.
//   An id outside of [0, V) is not read: it makes the row of the mixture, or the entry of dweights,
//   NaN, and adds nothing to dE.
#pragma once

#include "cuda/block_reduce.cuh"
#include "cuda/element.cuh"

namespace lepo {

// Warps do not meet; small blocks spread a single row over more multiprocessors.
constexpr int kMixThreads = 64;
constexpr int kMixWarps = kMixThreads / kWarpSize;
// Rows on their way at once. The decode step is a few warps per multiprocessor: each must cover the
// memory's latency alone.
constexpr int kMixLoads = 16;
// The same for the gradients, which have many more warps.
constexpr int kDotLoads = 4;
constexpr int kScatterLoads = 8;
// Blocks of a multiprocessor that the registers must leave room for: with single columns, with 16
// bytes of float32 and of 16-bit elements. Left to guess, some compilers spill for one more.
template <typename T, bool kAligned>
constexpr int kMixBlocks = !kAligned        ? 18
                           : sizeof(T) == 4 ? 10
                                            : 8;
template <typename T, bool kAligned>
constexpr int kScatterBlocks = !kAligned        ? 20
                               : sizeof(T) == 4 ? 14
                                                : 12;
// Long enough that few ids are shared between pieces, and short enough that both an id's pieces
// (250k entries of one id: 2000 partial sums) and a piece's entries are soon added.
constexpr int kPieceEntries = 128;

// The ids of a call.
struct Ids {
  const void* data;  // [N, K], int64 or int32
  bool wide;

  LEPO_DEVICE int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// A matrix whose rows are dense and `stride` elements apart.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  LEPO_DEVICE int64_t offset(int64_t row) const { return row * stride; }
  LEPO_DEVICE const T* operator[](int64_t row) const { return data + offset(row); }
};

LEPO_DEVICE bool in_range(int64_t id, int64_t vocab) { return id >= 0 && id < vocab; }

LEPO_DEVICE int64_t first_warp_item() { return int64_t{blockIdx.x} * kMixWarps + warp_of_thread(); }
LEPO_DEVICE int64_t warps_of_grid() { return int64_t{gridDim.x} * kMixWarps; }

// The columns of a lane: one 16-byte access, or a single column where that is not aligned.
template <typename T, bool kAligned>
struct Columns {
  static constexpr int kCount = kAligned ? Vector<T>::kSize : 1;
  static constexpr int kTile = kCount * kWarpSize;

  Vector<T> raw;

  LEPO_DEVICE void load(const T* from) {
    if constexpr (kAligned) {
      raw = load_vector(from);
    } else {
      raw.element[0] = *from;
    }
  }

  LEPO_DEVICE void add_to(float (&sum)[kCount], float weight) const {
    LEPO_UNROLL
    for (int i = 0; i < kCount; ++i) sum[i] = fmaf(weight, widen(raw.element[i]), sum[i]);
  }

  static LEPO_DEVICE void store(T* to, const float (&sum)[kCount]) {
    if constexpr (kAligned) {
      Vector<T> rounded;
      LEPO_UNROLL
      for (int i = 0; i < kCount; ++i) rounded.element[i] = narrow<T>(sum[i]);
      store_vector(to, rounded);
    } else {
      *to = narrow<T>(sum[0]);
    }
  }
};

// A lane's place in a tile of columns. A lane beyond the row reads its first column and writes
// nothing.
struct Place {
  int64_t column;
  bool inside;
};

template <int kCount>
LEPO_DEVICE Place place_in_tile(int64_t tile, int64_t width) {
  const int64_t column = (tile * kWarpSize + lane_of_thread()) * kCount;
  return column < width ? Place{column, true} : Place{0, false};
}

template <int kTile>
LEPO_DEVICE int64_t tiles_of(int64_t width) {
  return (width + kTile - 1) / kTile;
}

// --- The mixture ---------------------------------------------------------------------------------

// The first of the lanes in `lanes`, which it leaves.
LEPO_DEVICE int take_lane(unsigned& lanes) {
  const int lane = __ffs(static_cast<int>(lanes)) - 1;
  lanes &= lanes - 1;
  return lane;
}

// Adds the weighted rows of the lanes in `live`, in their order. The weights stay with their lanes
// until they are used: registers are for the rows on their way.
template <typename T, bool kAligned>
LEPO_DEVICE void add_live_rows(const T* columns,  // of row 0
                               int64_t offset, float weight, unsigned live,
                               float (&sum)[Columns<T, kAligned>::kCount]) {
  while (live != 0) {
    Columns<T, kAligned> x[kMixLoads];
    unsigned unread = live;
    LEPO_UNROLL
    for (int u = 0; u < kMixLoads; ++u) {
      if (unread == 0) continue;
      x[u].load(columns + __shfl_sync(kAllLanes, offset, take_lane(unread)));
    }
    LEPO_UNROLL
    for (int u = 0; u < kMixLoads; ++u) {
      if (live == 0) continue;
      x[u].add_to(sum, __shfl_sync(kAllLanes, weight, take_lane(live)));
    }
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMixThreads, kMixBlocks<T, kAligned>)
    mix_embeddings_kernel(Ids ids,                            // [N, K]
                          const float* __restrict__ weights,  // [N, K]
                          Rows<T> embedding,                  // [V, D]
                          int64_t vocab, int64_t rows, int64_t kept, int64_t width,
                          T* __restrict__ mixed) {  // [N, D]
  using Lane = Columns<T, kAligned>;
  const int64_t tiles = tiles_of<Lane::kTile>(width);
  for (int64_t item = first_warp_item(); item < rows * tiles; item += warps_of_grid()) {
    const int64_t n = item / tiles;
    const Place place = place_in_tile<Lane::kCount>(item % tiles, width);
    float sum[Lane::kCount] = {};
    for (int64_t first = 0; first < kept; first += kWarpSize) {
      const int64_t k = first + lane_of_thread();
      const float weight = k < kept ? weights[n * kept + k] : 0.0f;
      const int64_t id = k < kept ? ids[n * kept + k] : 0;
      const bool live = weight != 0.0f;
      if (__any_sync(kAllLanes, live && !in_range(id, vocab))) {
        LEPO_UNROLL
        for (int i = 0; i < Lane::kCount; ++i) sum[i] = NAN;
        break;
      }
      // The id of an entry of weight 0 may be anything.
      const int64_t offset = embedding.offset(live ? id : 0);
      add_live_rows<T, kAligned>(embedding.data + place.column, offset, weight,
                                 __ballot_sync(kAllLanes, live), sum);
    }
    if (place.inside) Lane::store(mixed + n * width + place.column, sum);
  }
}

// --- The gradient of the weights -----------------------------------------------------------------

// The chunk of a row that begins at `first`; 0 beyond its end.
template <bool kAligned, typename T>
LEPO_DEVICE Vector<T> load_chunk(const T* row,  // [D]
                                 int64_t first, int64_t width) {
  Vector<T> chunk{};
  if constexpr (kAligned) {
    if (first < width) chunk = load_vector(row + first);
  } else {
    LEPO_UNROLL
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      if (first + i < width) chunk.element[i] = row[first + i];
    }
  }
  return chunk;
}

// The dot product of two rows, by a warp; every lane has it.
template <bool kAligned, typename T>
LEPO_DEVICE float warp_dot(const T* a,  // [D]
                           const T* b,  // [D]
                           int64_t width) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kStep = kSize * kWarpSize;
  // A chunk that is read one by one is as many loads.
  constexpr int kLoads = kAligned ? kDotLoads : 1;
  float sum[kSize] = {};
  for (int64_t begin = lane_of_thread() * kSize; begin < width; begin += kLoads * kStep) {
    Vector<T> left[kLoads];
    Vector<T> right[kLoads];
    LEPO_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      left[u] = load_chunk<kAligned>(a, begin + u * kStep, width);
      right[u] = load_chunk<kAligned>(b, begin + u * kStep, width);
    }
    LEPO_UNROLL
    for (int u = 0; u < kLoads; ++u) {
      LEPO_UNROLL
      for (int i = 0; i < kSize; ++i) {
        sum[i] = fmaf(widen(left[u].element[i]), widen(right[u].element[i]), sum[i]);
      }
    }
  }
  LEPO_UNROLL
  for (int half = kSize / 2; half > 0; half /= 2) {
    LEPO_UNROLL
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return warp_reduce(sum[0], Sum());
}

// Neighbouring warps take entries of one row: the row of the gradient stays in the cache.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMixThreads)
    mix_dweights_kernel(Rows<T> grad,       // [N, D]
                        Ids ids,            // [N, K]
                        Rows<T> embedding,  // [V, D]
                        int64_t vocab, int64_t rows, int64_t kept, int64_t width,
                        float* __restrict__ dweights) {  // [N, K]
  for (int64_t item = first_warp_item(); item < rows * kept; item += warps_of_grid()) {
    const int64_t id = ids[item];
    float product = NAN;
    if (in_range(id, vocab)) {
      product = warp_dot<kAligned>(grad[item / kept], embedding[id], width);
    }
    if (lane_of_thread() == 0) dweights[item] = product;
  }
}

// --- The gradient of the table -------------------------------------------------------------------

// What entries are sorted by: their id, or V if they add nothing.
__global__ void __launch_bounds__(kMixThreads)
    mix_keys_kernel(Ids ids,                            // [N, K]
                    const float* __restrict__ weights,  // [N, K]
                    int64_t vocab, int64_t count,
                    int32_t* __restrict__ keys) {  // [N * K]
  const int64_t step = int64_t{gridDim.x} * kMixThreads;
  for (int64_t i = int64_t{blockIdx.x} * kMixThreads + threadIdx.x; i < count; i += step) {
    const int64_t id = ids[i];
    const bool adds = weights[i] != 0.0f && in_range(id, vocab);
    keys[i] = static_cast<int32_t>(adds ? id : vocab);
  }
}

// The entries in the order in which they are added.
struct SortedEntries {
  const int32_t* keys;   // [M], ascending; V at the end
  const int64_t* order;  // [M], n * K + k
  int64_t count;         // M = N * K
  LEPO_DEVICE int64_t pieces() const { return (count + kPieceEntries - 1) / kPieceEntries; }
};

// Where the sums of ids go. A piece has two partial sums: that of the id it shares with the piece
// before, and that of an id that begins in it and goes on.
template <typename T>
struct TableGradient {
  float* partial;  // [pieces, 2, D]
  T* dembedding;   // [V, D]
  int64_t width;

  LEPO_DEVICE float* shared_with_previous(int64_t piece) const {
    return partial + 2 * piece * width;
  }
  LEPO_DEVICE float* begun(int64_t piece) const { return partial + (2 * piece + 1) * width; }
  LEPO_DEVICE T* row(int64_t id) const { return dembedding + id * width; }
};

// A lane's columns of a partial sum, in memory.
template <int kCount>
struct PartialSum {
  using Part = Columns<float, kCount != 1>;

  Part part[kCount / Part::kCount];

  // `from` was written by an earlier launch.
  LEPO_DEVICE void load(const float* from) {
    LEPO_UNROLL
    for (int i = 0; i < kCount / Part::kCount; ++i) part[i].load(from + i * Part::kCount);
  }

  LEPO_DEVICE void add_to(float (&sum)[kCount]) const {
    LEPO_UNROLL
    for (int i = 0; i < kCount; ++i) sum[i] += part[i / Part::kCount].raw.element[i % Part::kCount];
  }

  static LEPO_DEVICE void store(float* to, const float (&sum)[kCount]) {
    LEPO_UNROLL
    for (int i = 0; i < kCount; i += Part::kCount) {
      float values[Part::kCount];
      LEPO_UNROLL
      for (int j = 0; j < Part::kCount; ++j) values[j] = sum[i + j];
      Part::store(to + i, values);
    }
  }
};

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMixThreads, kScatterBlocks<T, kAligned>)
    mix_scatter_kernel(SortedEntries entries,              // [M]
                       const float* __restrict__ weights,  // [N, K]
                       Rows<T> grad,                       // [N, D]
                       int64_t vocab, int64_t kept, TableGradient<T> out) {
  using Lane = Columns<T, kAligned>;
  using Partial = PartialSum<Lane::kCount>;
  const int64_t tiles = tiles_of<Lane::kTile>(out.width);
  for (int64_t item = first_warp_item(); item < entries.pieces() * tiles; item += warps_of_grid()) {
    const int64_t piece = item / tiles;
    const Place place = place_in_tile<Lane::kCount>(item % tiles, out.width);
    const int64_t begin = piece * kPieceEntries;
    const auto count = static_cast<int>(min(entries.count - begin, int64_t{kPieceEntries}));
    int32_t current = entries.keys[begin];
    if (current == vocab) continue;
    bool began_before = begin > 0 && entries.keys[begin - 1] == current;
    const T* const columns = grad.data + place.column;
    float sum[Lane::kCount] = {};
    for (int first = 0; first < count; first += kWarpSize) {
      const int at = first + lane_of_thread();
      const int64_t entry = at < count ? entries.order[begin + at] : 0;
      const int32_t key = at < count ? entries.keys[begin + at] : static_cast<int32_t>(vocab);
      const float weight = weights[entry];
      const int64_t offset = grad.offset(entry / kept);
      // Those that add nothing come last.
      const int live = __popc(__ballot_sync(kAllLanes, key != vocab));
      // The entries whose id is another one than that of the entry before: a bit each, where a
      // register each would be needed for their ids while the rows are on their way.
      const int32_t key_above = __shfl_up_sync(kAllLanes, key, 1);
      const int32_t key_before = lane_of_thread() == 0 ? current : key_above;
      const unsigned begins = __ballot_sync(kAllLanes, key != key_before);
      for (int next = 0; next < live; next += kScatterLoads) {
        Lane x[kScatterLoads];
        LEPO_UNROLL
        for (int u = 0; u < kScatterLoads; ++u) {
          if (next + u >= live) continue;
          x[u].load(columns + __shfl_sync(kAllLanes, offset, next + u));
        }
        LEPO_UNROLL
        for (int u = 0; u < kScatterLoads; ++u) {
          if (next + u >= live) continue;
          if ((begins >> (next + u) & 1) != 0) {
            if (place.inside && began_before) {
              Partial::store(out.shared_with_previous(piece) + place.column, sum);
            } else if (place.inside) {
              Lane::store(out.row(current) + place.column, sum);
            }
            LEPO_UNROLL
            for (int i = 0; i < Lane::kCount; ++i) sum[i] = 0.0f;
            current = __shfl_sync(kAllLanes, key, next + u);
            began_before = false;
          }
          x[u].add_to(sum, __shfl_sync(kAllLanes, weight, next + u));
        }
      }
    }
    if (!place.inside) continue;
    if (began_before) {
      Partial::store(out.shared_with_previous(piece) + place.column, sum);
    } else if (begin + count < entries.count && entries.keys[begin + count] == current) {
      Partial::store(out.begun(piece) + place.column, sum);
    } else {
      Lane::store(out.row(current) + place.column, sum);
    }
  }
}

// Adds up the ids that pieces share: the warps of the piece where an id begins.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMixThreads)
    mix_join_kernel(SortedEntries entries,  // [M]
                    int64_t vocab, TableGradient<T> out) {
  using Lane = Columns<T, kAligned>;
  using Partial = PartialSum<Lane::kCount>;
  const int64_t tiles = tiles_of<Lane::kTile>(out.width);
  const int64_t pieces = entries.pieces();
  for (int64_t item = first_warp_item(); item < (pieces - 1) * tiles; item += warps_of_grid()) {
    const int64_t piece = item / tiles;
    const Place place = place_in_tile<Lane::kCount>(item % tiles, out.width);
    const int64_t begin = piece * kPieceEntries;
    const int32_t id = entries.keys[begin + kPieceEntries - 1];
    const bool goes_on = id != vocab && entries.keys[begin + kPieceEntries] == id;
    const bool began_before = begin > 0 && entries.keys[begin - 1] == id;
    if (!goes_on || began_before) continue;
    float sum[Lane::kCount] = {};
    Partial begun;
    begun.load(out.begun(piece) + place.column);
    begun.add_to(sum);
    int more = kWarpSize;
    for (int64_t first = piece + 1; more == kWarpSize; first += kWarpSize) {
      const int64_t other = first + lane_of_thread();
      const bool shared = other < pieces && entries.keys[other * kPieceEntries] == id;
      // The pieces that begin with this id follow one another.
      more = __popc(__ballot_sync(kAllLanes, shared));
      for (int next = 0; next < more; next += kScatterLoads) {
        Partial x[kScatterLoads];
        LEPO_UNROLL
        for (int u = 0; u < kScatterLoads; ++u) {
          if (next + u < more) x[u].load(out.shared_with_previous(first + next + u) + place.column);
        }
        LEPO_UNROLL
        for (int u = 0; u < kScatterLoads; ++u) {
          if (next + u < more) x[u].add_to(sum);
        }
      }
    }
    if (place.inside) Lane::store(out.row(id) + place.column, sum);
  }
}

}  // namespace lepo
