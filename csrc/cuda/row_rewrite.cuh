// A warp's part of a row that is read and then overwritten, or written elsewhere: 1024 entries in
// registers.
//
// Contract: each lane holds kSlots entries, in groups of kGroup neighbours; the groups lie side by
// side along the lanes. A group moves in 16-byte accesses where it is whole and its address allows,
// else entry by entry; nothing outside the row is read or written. A part may begin before the row,
// so that its groups are aligned: use it where no sum runs over entries. Loads do not use the
// read-only path, so a thread may overwrite what it has read.
#pragma once

#include "cuda/element.cuh"

namespace lepo {

constexpr int kPartEntries = 1024;
constexpr int kSlots = kPartEntries / kWarpSize;

template <typename T>
LEPO_DEVICE bool is_aligned(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0;
}

template <typename T>
LEPO_DEVICE int entries_past_aligned(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kVectorBytes / sizeof(T));
}

// `from` is aligned. What is read once shall not push other data out of the caches.
template <typename T>
LEPO_DEVICE Vector<T> load_vector_once(const T* from) {
#if defined(__CUDACC__)
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(from));
  return *reinterpret_cast<const Vector<T>*>(&raw);
#else
  return __ldcs(reinterpret_cast<const Vector<T>*>(from));
#endif
}

// Whether `at` is inside [0, count).
LEPO_DEVICE bool is_inside(int at, int count) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(count);
}

// Adds entries begin .. begin + kPartEntries of a row, those inside [0, count).
template <int kGroup, typename T>
LEPO_DEVICE void add_part(const T* row,  // [count]
                          int begin, int count, int lane, float (&x)[kSlots]) {
  constexpr int kSize = Vector<T>::kSize;
  static_assert(kGroup % kSize == 0, "a group is made of whole vectors");
  const int low = begin + lane * kGroup;
  const T* mine = row + low;
  const bool aligned = is_aligned(row + begin);
  if (aligned && begin >= 0 && begin + kPartEntries <= count) {
    // All loads before the first use: they wait for memory together.
    Vector<T> v[kSlots / kSize];
    LEPO_UNROLL
    for (int i = 0; i < kSlots / kSize; ++i) {
      const int slot = i * kSize;
      v[i] = load_vector_once(mine + slot / kGroup * kWarpSize * kGroup + slot % kGroup);
    }
    LEPO_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      x[slot] += widen(v[slot / kSize].element[slot % kSize]);
    }
    return;
  }
  LEPO_UNROLL
  for (int group = 0; group < kSlots / kGroup; ++group) {
    const int ahead = group * kWarpSize * kGroup;
    const int first = low + ahead;
    if (aligned && first >= 0 && first + kGroup <= count) {
      LEPO_UNROLL
      for (int i = 0; i < kGroup; i += kSize) {
        const Vector<T> v = load_vector_once(mine + ahead + i);
        LEPO_UNROLL
        for (int e = 0; e < kSize; ++e) x[group * kGroup + i + e] += widen(v.element[e]);
      }
    } else {
      LEPO_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        if (is_inside(first + i, count)) x[group * kGroup + i] += widen(mine[ahead + i]);
      }
    }
  }
}

// Writes them, each rounded once.
template <int kGroup, typename T>
LEPO_DEVICE void store_part(T* row,  // [count]
                            int begin, int count, int lane, const float (&x)[kSlots]) {
  constexpr int kSize = Vector<T>::kSize;
  static_assert(kGroup % kSize == 0, "a group is made of whole vectors");
  const int low = begin + lane * kGroup;
  T* mine = row + low;
  const bool aligned = is_aligned(row + begin);
  LEPO_UNROLL
  for (int group = 0; group < kSlots / kGroup; ++group) {
    const int ahead = group * kWarpSize * kGroup;
    const int first = low + ahead;
    if (aligned && first >= 0 && first + kGroup <= count) {
      LEPO_UNROLL
      for (int i = 0; i < kGroup; i += kSize) {
        Vector<T> v;
        LEPO_UNROLL
        for (int e = 0; e < kSize; ++e) v.element[e] = narrow<T>(x[group * kGroup + i + e]);
        store_vector(mine + ahead + i, v);
      }
    } else {
      LEPO_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        if (is_inside(first + i, count)) mine[ahead + i] = narrow<T>(x[group * kGroup + i]);
      }
    }
  }
}

}  // namespace lepo
