// Exact selection of the k best of many entries, by value descending, then id ascending.
//
// Values are compared as keys: int32 numbers in the order of the floats they stand for, in which
// -0.0 and 0.0 are the same. Candidates are collected with ids ascending, and every step here keeps
// their order, so ties need no second key.
#pragma once

#include "common/radix_sort.h"
#include "cpu/vector.h"

namespace lepo {
namespace LEPO_CAPABILITY {

constexpr int32_t kLowestKey = INT32_MIN;  // below the key of every number

LEPO_INLINE I32 keys_of(F32 x) {
  const I32 bits = reinterpret_cast<I32>(x + 0.0f);  // -0.0 becomes 0.0
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

LEPO_INLINE int32_t key_of(float x) {
  x += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

LEPO_INLINE float float_of_key(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7FFFFFFF);
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

LEPO_INLINE I32 load_keys(const int32_t* from) {
  I32 keys;
  std::memcpy(&keys, from, sizeof(keys));
  return keys;
}

// One bit per lane of a comparison's result.
LEPO_INLINE uint32_t lane_bits(I32 mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

LEPO_INLINE int64_t round_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// How many of the keys are at least `bound`; `count` is a multiple of kLanes.
LEPO_INLINE int64_t count_at_least(const int32_t* keys, int64_t count, int32_t bound) {
  I32 found{};
  for (int64_t i = 0; i < count; i += kLanes) found -= load_keys(keys + i) >= bound;
  int64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += found[i];
  return total;
}

// The k best are the keys above `below`, and the first `ties` of those equal to it.
struct Cut {
  int32_t below;
  int64_t ties;
};

// Bisection between the smallest and the largest key. `count` is a multiple of kLanes and more
// than k.
inline Cut find_cut(const int32_t* keys, int64_t count, int64_t k) {
  I32 lowest = load_keys(keys), highest = lowest;
  for (int64_t i = kLanes; i < count; i += kLanes) {
    const I32 next = load_keys(keys + i);
    lowest = next < lowest ? next : lowest;
    highest = next > highest ? next : highest;
  }
  int64_t low = lowest[0], high = highest[0];
  for (int i = 1; i < kLanes; ++i) {
    low = lowest[i] < low ? lowest[i] : low;
    high = highest[i] > high ? highest[i] : high;
  }
  ++high;
  int64_t above = 0;  // keys that are at least `high`: fewer than k
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t found = count_at_least(keys, count, static_cast<int32_t>(middle));
    if (found == k) return {static_cast<int32_t>(middle - 1), 0};
    if (found > k) {
      low = middle;
    } else {
      high = middle;
      above = found;
    }
  }
  return {static_cast<int32_t>(low), k - above};
}

// Entries that may be among the k best, with ids ascending. The arrays have room for `capacity`
// entries and a vector.
struct Candidates {
  int32_t* key;
  int32_t* id;
  int64_t count;
  int64_t capacity;
};

// Drops what is not among the k best. Returns the key that a later entry must reach to displace
// one.
inline int32_t shrink(Candidates& c, int64_t k) {
  if (c.count <= k) return kLowestKey;
  const int64_t padded = round_up(c.count);
  for (int64_t i = c.count; i < padded; ++i) c.key[i] = kLowestKey;
  Cut cut = find_cut(c.key, padded, k);
  int64_t kept = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const int32_t key = c.key[i];
    const bool tie = key == cut.below && cut.ties > 0;
    c.key[kept] = key;
    c.id[kept] = c.id[i];
    cut.ties -= tie;
    kept += key > cut.below || tie;
  }
  c.count = kept;
  return cut.below + 1;
}

// Up to here, each entry's rank is counted; beyond, a radix sort is faster.
constexpr int64_t kMostRanked = 128;

// ranks[i] = how many entries come before entry i, for a vector of entries.
LEPO_INLINE I32 count_before(const Candidates& c, int64_t first) {
  const I32 own = load_keys(c.key + first);
  const I32 index = lane_numbers() + static_cast<int32_t>(first);
  I32 rank{};
  for (int32_t j = 0; j < c.count; ++j) {
    const I32 key = broadcast(c.key[j]);
    rank -= (key > own) | ((key == own) & (j < index));
  }
  return rank;
}

inline void sort_by_rank(Candidates& c) {
  int32_t key[kMostRanked], id[kMostRanked];
  for (int64_t i = 0; i < c.count; i += kLanes) {
    const I32 rank = count_before(c, i);
    for (int64_t j = i; j < c.count && j < i + kLanes; ++j) {
      key[rank[j - i]] = c.key[j];
      id[rank[j - i]] = c.id[j];
    }
  }
  std::memcpy(c.key, key, c.count * sizeof(*key));
  std::memcpy(c.id, id, c.count * sizeof(*id));
}

// Sorts by key descending, ids ascending within ties. `spare` has room for 2 * count pairs.
inline void sort_candidates(Candidates& c, KeyedItem* spare) {
  if (c.count <= kMostRanked) return sort_by_rank(c);
  for (int64_t i = 0; i < c.count; ++i) {
    // Reversed, since the sort ascends.
    spare[i] = {static_cast<uint32_t>(c.key[i]) ^ 0x7FFFFFFFu, c.id[i]};
  }
  const KeyedItem* sorted = radix_sort(spare, spare + c.count, c.count);
  for (int64_t i = 0; i < c.count; ++i) {
    c.key[i] = static_cast<int32_t>(sorted[i].key ^ 0x7FFFFFFFu);
    c.id[i] = sorted[i].item;
  }
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
