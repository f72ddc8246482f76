// The latent draw: one row's statistics, selection and noise.
//
// Contract: the row is read once from memory, a block at a time; a block is then worked on in the
// first-level cache. A second, partial read looks into the few blocks that hold a candidate. Every
// number of a row depends on the row alone, and not on threads, batch or the place in it;
// deterministic. The top k and their order are exact; the mass that top_p cuts at is a float32 sum.
#include "cpu/sample_latent.h"

#include "cpu/element.h"
#include "cpu/latent_noise.h"
#include "cpu/selection.h"
#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

constexpr int kBlockVectors = kBlockEntries / kLanes;
constexpr int64_t kPrefetchEntries = 4 * kBlockEntries;

// --- Statistics ----------------------------------------------------------------------------------

struct Accumulator {
  float top = -FLT_MAX;
  F32 mass = {};
  F32 shift = {};
};

// Makes all sums relative to a new, larger top. The distance is bounded: 0 * inf would be NaN.
LEPO_INLINE void raise_top(Accumulator& sums, float top) {
  const float lift = sums.top - top;
  const float distance = lift > -200.0f ? lift : -200.0f;
  const F32 scale = exp_or_zero(broadcast(distance));
  sums.shift = scale * (sums.shift + distance * sums.mass);
  sums.mass *= scale;
  sums.top = top;
}

// exp(x) for x <= 0, not below kSmallestExponent: exactly 1 at 0, else within 1.7e-7 of it. That is
// more than the 6e-8 of `exp`, and less work; in a sum it averages out.
LEPO_INLINE F32 exp_term(F32 x) {
  // As in `exp`: the rounded multiple of ln 2 in the low bits, with the bias of an exponent.
  const F32 t = x * 0x1.715476p+0f + 0x1.8000FEp23f;
  const F32 n = t - 0x1.8000FEp23f;
#if defined(__FMA__)
  const F32 r = x - n * 0x1.62e43p-1f;
#else
  const F32 r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
#endif
  // Minimax on |r| <= ln(2) / 2 under the condition that it begin with 1 + r.
  F32 p = r * 0x1.10625ep-7f + 0x1.572a44p-5f;
  p = p * r + 0x1.5557b0p-3f;
  p = p * r + 0x1.fffdfcp-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // A product keeps NaN.
  return p * as_float(as_bits(t) << 23);
}

// Adds a block's terms to each other before it adds them to the chunk's: fewer roundings.
LEPO_INLINE void add_block(Accumulator& sums, const float* a) {
  F32 mass[2] = {}, shift[2] = {};
#pragma GCC unroll 16
  for (int i = 0; i < kBlockVectors; ++i) {
    // In this order, a NaN passes.
    const F32 x = max(broadcast(kSmallestExponent), load(a + i * kLanes) - sums.top);
    const F32 term = exp_term(x);
    mass[i % 2] += term;
    shift[i % 2] += x * term;
  }
  sums.mass += mass[0] + mass[1];
  sums.shift += shift[0] + shift[1];
}

// Tempers a block into `a`, and returns each lane's maximum. At temperature 1, which is common,
// there is nothing to multiply.
template <bool Tempered, typename T>
LEPO_INLINE F32 temper_block(const T* logits, float inv_temperature, float* a) {
  F32 top[2] = {broadcast(-kInfinity), broadcast(-kInfinity)};
  for (int i = 0; i < kBlockVectors; i += 2) {
    for (int j = 0; j < 2; ++j) {
      F32 x = load(logits + (i + j) * kLanes);
      if (Tempered) x *= inv_temperature;
      store(a + (i + j) * kLanes, x);
      top[j] = max(x, top[j]);
    }
  }
  return max(top[0], top[1]);
}

// The same of a block that ends early; -inf behind it.
template <typename T>
F32 temper_some(const T* logits, int64_t count, float inv_temperature, float* a) {
  F32 top = broadcast(-kInfinity);
  for (int64_t i = 0; i < kBlockEntries; i += kLanes) {
    const int64_t left = count - i;
    F32 x = broadcast(-kInfinity);
    if (left >= kLanes) {
      x = load(logits + i) * inv_temperature;
    } else if (left > 0) {
      x = load_some(logits + i, static_cast<int>(left), -kInfinity) * inv_temperature;
    }
    store(a + i, x);
    top = max(x, top);
  }
  return top;
}

template <typename T>
LEPO_INLINE void prefetch_block(const T* logits) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kBlockEntries; i += kLine) __builtin_prefetch(logits + i);
}

template <bool Tempered, typename T>
LEPO_INLINE ChunkSums summarise_entries(const T* entries, float inv_temperature, int64_t count,
                                        float* cells) {
  alignas(LEPO_VECTOR_BYTES) float a[kBlockEntries];
  Accumulator sums;
  for (int64_t at = 0; at < count; at += kBlockEntries, cells += kLanes) {
    const int64_t left = count - at;
    if (left >= kPrefetchEntries + kBlockEntries) prefetch_block(entries + at + kPrefetchEntries);
    const F32 top = left >= kBlockEntries ? temper_block<Tempered>(entries + at, inv_temperature, a)
                                          : temper_some(entries + at, left, inv_temperature, a);
    store(cells, top);
    if (any(top > sums.top)) raise_top(sums, max_lanes(top));
    add_block(sums, a);
  }
  return {sums.top, sum_lanes(sums.mass), sum_lanes(sums.shift)};
}

template <typename T>
ChunkSums summarise(const void* logits, float inv_temperature, int64_t count, float* cells) {
  const T* const entries = static_cast<const T*>(logits);
  return inv_temperature == 1.0f ? summarise_entries<false>(entries, 1.0f, count, cells)
                                 : summarise_entries<true>(entries, inv_temperature, count, cells);
}

struct RowStatistics {
  float lse;
  float entropy;
};

// What entries without mass leave behind in a sum of up to 2^26 terms.
constexpr double kNoEntropy = 1e-28;

RowStatistics combine(const ChunkSums* sums, int64_t chunks) {
  double top = sums[0].top;
  for (int64_t i = 1; i < chunks; ++i) top = sums[i].top > top ? sums[i].top : top;
  double mass = 0, shift = 0;
  for (int64_t i = 0; i < chunks; ++i) {
    const double distance = sums[i].top - top;
    const double scale = ::exp(distance);
    mass += scale * sums[i].mass;
    shift += scale * (sums[i].shift + distance * sums[i].mass);
  }
  const double log_mass = ::log(mass);
  const double entropy = log_mass - shift / mass;
  return {static_cast<float>(top + log_mass),
          static_cast<float>(entropy < kNoEntropy ? 0.0 : entropy)};
}

// --- Selection -----------------------------------------------------------------------------------

LEPO_INLINE bool is_excluded(const Excluded& excluded, int64_t id) {
  return excluded.bits != nullptr && ((excluded.bits[id >> 5] >> (id & 31)) & 1u);
}

// Recomputes the maxima of the blocks that hold excluded ids, without those.
template <typename T>
void lower_excluded_cells(const LatentOptions& options, const LatentRow& row) {
  const T* const logits = static_cast<const T*>(row.logits);
  for (int64_t i = 0; i < options.excluded.block_count; ++i) {
    const int64_t block = options.excluded.blocks[i];
    float* const cells = row.cells + block * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) cells[lane] = -kInfinity;
    const int64_t begin = block * kBlockEntries;
    const int64_t end =
        begin + kBlockEntries < options.vocab ? begin + kBlockEntries : options.vocab;
    for (int64_t id = begin; id < end; ++id) {
      if (is_excluded(options.excluded, id)) continue;
      const float a = load_one(logits + id) * row.inv_temperature;
      float& cell = cells[(id - begin) % kLanes];
      cell = a > cell ? a : cell;
    }
  }
}

LEPO_INLINE float row_top(const float* cells, int64_t count) {
  F32 top = load(cells);
  for (int64_t i = kLanes; i < count; i += kLanes) top = max(load(cells + i), top);
  return max_lanes(top);
}

// More groups of cells than k, by this factor, leave few candidates that are not kept.
constexpr int64_t kGroupsPerKept = 8;

// A value that at least k entries reach, if so many are finite: each cell is the maximum of other
// entries, so the k-th largest cell will do. Cells are first merged into groups, to have fewer.
inline float lower_bound(const LatentOptions& options, const LatentRow& row, int64_t blocks,
                         int32_t* keys) {
  const int64_t k = options.top_k;
  if (blocks * kLanes <= k) return -FLT_MAX;
  int64_t merged = 1;
  while (blocks / (2 * merged) * kLanes >= kGroupsPerKept * k) merged *= 2;
  int64_t groups = 0;
  for (int64_t block = 0; block < blocks; block += merged, groups += kLanes) {
    F32 top = load(row.cells + block * kLanes);
    for (int64_t i = 1; i < merged && block + i < blocks; ++i) {
      top = max(load(row.cells + (block + i) * kLanes), top);
    }
    const I32 key = keys_of(top);
    std::memcpy(keys + groups, &key, sizeof(key));
  }
  if (groups <= k) return -FLT_MAX;
  const Cut cut = find_cut(keys, groups, k);
  const float bound = float_of_key(cut.ties > 0 ? cut.below : cut.below + 1);
  return bound > -FLT_MAX ? bound : -FLT_MAX;
}

LEPO_INLINE void collect_vector(const Excluded& excluded, F32 a, int64_t first, float bound,
                                Candidates& found) {
  uint32_t bits = lane_bits(a >= bound);
  if (bits == 0) return;
  float value[kLanes];
  store(value, a);
  for (; bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    if (is_excluded(excluded, first + lane)) continue;
    found.key[found.count] = key_of(value[lane]);
    found.id[found.count] = static_cast<int32_t>(first + lane);
    ++found.count;
  }
}

// Ids ascend: once there are k candidates, a later entry must be larger than the last of them.
template <typename T>
void collect(const LatentOptions& options, const LatentRow& row, float bound, Candidates& found) {
  const T* const logits = static_cast<const T*>(row.logits);
  const float* cells = row.cells;
  for (int64_t at = 0; at < options.vocab; at += kBlockEntries, cells += kLanes) {
    if (!any(load(cells) >= bound)) continue;
    if (found.count + kBlockEntries > found.capacity) {
      const float higher = float_of_key(shrink(found, options.top_k));
      bound = higher > bound ? higher : bound;
    }
    const int64_t left = options.vocab - at;
    const int64_t count = left < kBlockEntries ? left : kBlockEntries;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const F32 a = load(logits + at + i) * row.inv_temperature;
      collect_vector(options.excluded, a, at + i, bound, found);
    }
    if (i < count) {
      const F32 x = load_some(logits + at + i, static_cast<int>(count - i), -kInfinity);
      collect_vector(options.excluded, x * row.inv_temperature, at + i, bound, found);
    }
  }
}

template <typename T>
Kept select(const LatentOptions& options, const LatentRow& row, const LatentScratch& scratch,
            int64_t blocks) {
  // The keys of the groups lie where the candidates' will: they are done with before.
  const float bound = lower_bound(options, row, blocks, scratch.key);
  Candidates found{scratch.key, scratch.id, 0, scratch.capacity};
  collect<T>(options, row, bound, found);
  shrink(found, options.top_k);
  sort_candidates(found, scratch.pairs);
  for (int64_t i = 0; i < found.count; ++i) scratch.a[i] = float_of_key(found.key[i]);
  for (int64_t i = found.count; i < round_up(found.count); ++i) {
    scratch.a[i] = -kInfinity;
    scratch.id[i] = 0;
  }
  return {scratch.id, scratch.a, scratch.score, scratch.mass, found.count, 0.0f};
}

// --- Results -------------------------------------------------------------------------------------

void write_entries(const LatentOptions& options, const LatentRow& row, const Kept& kept) {
  const int64_t first = kept.id[0];
  for (int64_t i = 0; i < options.width; ++i) row.ids[i] = i < kept.count ? kept.id[i] : first;
  const int64_t bytes = kept.count * sizeof(float);
  std::memcpy(row.weights, kept.mass, bytes);
  std::memcpy(row.scores, kept.score, bytes);
  std::memcpy(row.kept_logits, kept.a, bytes);
  for (int64_t i = kept.count; i < options.width; ++i) {
    row.weights[i] = 0;
    row.scores[i] = row.kept_logits[i] = -kInfinity;
  }
  *row.count = static_cast<int32_t>(kept.count);
}

void write_draws(const LatentOptions& options, const LatentRow& row, const PhiloxKey& key,
                 const Kept& kept) {
  for (int64_t i = 0; i < options.width; ++i) {
    const int64_t picked = pick(key, static_cast<uint32_t>(i), kept);
    row.ids[i] = kept.id[picked];
    row.weights[i] = 1.0f / static_cast<float>(options.width);
    row.scores[i] = row.kept_logits[i] = kept.a[picked];
  }
  *row.count = static_cast<int32_t>(options.width);
}

// A row with nothing to draw from: NaN, and ids that are in range.
void write_nothing(const LatentOptions& options, const LatentRow& row) {
  for (int64_t i = 0; i < options.width; ++i) {
    row.ids[i] = 0;
    row.weights[i] = row.scores[i] = row.kept_logits[i] = __builtin_nanf("");
  }
  *row.count = 0;
  *row.kept_lse = __builtin_nanf("");
  *row.shadow = *row.token = 0;
}

template <typename T>
RowState draw(const LatentOptions& options, const LatentRow& row, const LatentScratch& scratch) {
  const int64_t blocks = (options.vocab + kBlockEntries - 1) / kBlockEntries;
  const int64_t chunks = (options.vocab + kChunkEntries - 1) / kChunkEntries;
  const RowStatistics statistics = combine(row.sums, chunks);
  *row.lse = statistics.lse;
  *row.entropy = statistics.entropy;
  const float top = row_top(row.cells, blocks * kLanes);
  if (top == -kInfinity || !(fabsf(statistics.lse) <= FLT_MAX)) {
    *row.lse = *row.entropy = __builtin_nanf("");
    write_nothing(options, row);
    return RowState::kBadLogits;
  }
  lower_excluded_cells<T>(options, row);
  Kept kept = select<T>(options, row, scratch, blocks);
  if (kept.count == 0) {
    write_nothing(options, row);
    return RowState::kNothingLeft;
  }
  filter(options, kept);
  *row.kept_lse = static_cast<float>(kept.a[0] + ::log(static_cast<double>(kept.total)));
  *row.shadow = kept.id[0];
  const PhiloxKey key{options.seed, row.row_key, row.step};
  if (options.noise == Noise::kCategorical) {
    write_draws(options, row, key, kept);
    *row.token = row.ids[0];
    return RowState::kGood;
  }
  perturb(options, key, kept);
  const int64_t best = best_entry(kept);
  weigh(row.tau, best, kept);
  write_entries(options, row, kept);
  *row.token = kept.id[best];
  return RowState::kGood;
}

}  // namespace

extern const SampleLatentKernels sample_latent_kernels;
const SampleLatentKernels sample_latent_kernels = {
    kLanes,
    {&summarise<float>, &summarise<BFloat16>, &summarise<Float16>},
    {&draw<float>, &draw<BFloat16>, &draw<Float16>},
};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
