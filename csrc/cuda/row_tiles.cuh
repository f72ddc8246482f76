// A warp's walk over a row in global memory, in units of 512 entries.
//
// Contract: lane l of a warp holds two octets of 8 neighbours, from entries 8 l and 256 + 8 l of
// the unit on. Which lane holds an entry, and in which order, depends on neither the row's address
// nor its element type: so neither do the bits of what is summed. Loads are of 16 bytes; at a
// misaligned address two of them are shifted into one. Where that would touch memory outside the
// row, single entries are read. Behind the row's end entries are -inf.
#pragma once

#include "cuda/element.cuh"

namespace lepo {

constexpr int kOctetEntries = 8;
constexpr int kUnitOctets = 2;  // of a lane
constexpr int kLaneEntries = kUnitOctets * kOctetEntries;
constexpr int kUnitEntries = kLaneEntries * kWarpSize;

// Entries as they are in memory.
template <typename T>
struct Octet {
  static constexpr int kWords = kOctetEntries * static_cast<int>(sizeof(T)) / 4;
  uint32_t word[kWords];
};

LEPO_DEVICE float entry(const Octet<float>& x, int i) { return __uint_as_float(x.word[i]); }

LEPO_DEVICE float entry(const Octet<BFloat16>& x, int i) {
  const uint32_t pair = x.word[i / 2];
  return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xFFFF0000u);
}

LEPO_DEVICE float entry(const Octet<Float16>& x, int i) {
  return widen(Float16{static_cast<uint16_t>(x.word[i / 2] >> (i % 2 * 16))});
}

LEPO_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
LEPO_DEVICE uint32_t bits_of(BFloat16 x) { return x.bits; }
LEPO_DEVICE uint32_t bits_of(Float16 x) { return x.bits; }

template <typename T>
struct Row {
  const T* entries;  // [count]
  int count;
  int misaligned;  // bytes from the 16-byte address before

  LEPO_DEVICE Row(const T* entries_, int count_)
      : entries(entries_),
        count(count_),
        misaligned(static_cast<int>(reinterpret_cast<uintptr_t>(entries_) % kVectorBytes)) {}
};

template <typename T>
LEPO_DEVICE Octet<T> aligned_octet(const T* from) {
  const auto* vectors = reinterpret_cast<const uint4*>(from);
  Octet<T> x;
  LEPO_UNROLL
  for (int i = 0; i < Octet<T>::kWords / 4; ++i) {
    const uint4 vector = __ldg(vectors + i);
    x.word[4 * i] = vector.x;
    x.word[4 * i + 1] = vector.y;
    x.word[4 * i + 2] = vector.z;
    x.word[4 * i + 3] = vector.w;
  }
  return x;
}

// Reads from the 16-byte address at or before `from` to one behind the octet.
template <typename T>
LEPO_DEVICE Octet<T> shifted_octet(const T* from, int misaligned) {
  constexpr int kWords = Octet<T>::kWords;
  const auto* vectors =
      reinterpret_cast<const uint4*>(reinterpret_cast<uintptr_t>(from) - misaligned);
  uint32_t word[kWords + 4];
  LEPO_UNROLL
  for (int i = 0; i <= kWords / 4; ++i) {
    const uint4 vector = __ldg(vectors + i);
    word[4 * i] = vector.x;
    word[4 * i + 1] = vector.y;
    word[4 * i + 2] = vector.z;
    word[4 * i + 3] = vector.w;
  }
  // By 8 bytes, 4, and 2: an index that is unknown to nvcc would put the words into local memory.
  LEPO_UNROLL
  for (int i = 0; i < kWords + 2; ++i) word[i] = (misaligned & 8) != 0 ? word[i + 2] : word[i];
  LEPO_UNROLL
  for (int i = 0; i < kWords + 1; ++i) word[i] = (misaligned & 4) != 0 ? word[i + 1] : word[i];
  Octet<T> x;
  LEPO_UNROLL
  for (int i = 0; i < kWords; ++i) {
    x.word[i] = (misaligned & 2) != 0 ? word[i] >> 16 | word[i + 1] << 16 : word[i];
  }
  return x;
}

// Words move down by the bits of one entry, which takes the highest place.
template <typename T>
LEPO_DEVICE void push_entry(Octet<T>& x, T value) {
  constexpr int kWords = Octet<T>::kWords;
  LEPO_UNROLL
  for (int i = 0; i < kWords; ++i) {
    const uint32_t above = i + 1 < kWords ? x.word[i + 1] : bits_of(value);
    x.word[i] = sizeof(T) == 4 ? above : x.word[i] >> 16 | above << 16;
  }
}

template <typename T>
LEPO_DEVICE Octet<T> octet_by_entries(const Row<T>& row, int first) {
  Octet<T> x{};
  LEPO_ROLLED
  for (int at = first; at < first + kOctetEntries; ++at) {
    push_entry(x, at < row.count ? row.entries[at] : narrow<T>(-INFINITY));
  }
  return x;
}

// The octet from entry `first` on, a multiple of 8.
template <typename T>
LEPO_DEVICE Octet<T> load_octet(const Row<T>& row, int first) {
  constexpr int kSize = static_cast<int>(sizeof(T));
  if (row.misaligned == 0) {
    if (first + kOctetEntries <= row.count) return aligned_octet(row.entries + first);
  } else {
    const int end = first + kOctetEntries + (kVectorBytes - row.misaligned) / kSize;
    if (first > 0 && end <= row.count) return shifted_octet(row.entries + first, row.misaligned);
  }
  return octet_by_entries(row, first);
}

// A lane's part of a unit.
template <typename T>
struct Unit {
  Octet<T> octet[kUnitOctets];
};

// The lane's octet `number` of a unit begins with this entry.
LEPO_DEVICE int first_of_octet(int unit, int number) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  return unit * kUnitEntries + (number * kWarpSize + lane) * kOctetEntries;
}

template <typename T>
LEPO_DEVICE Unit<T> load_unit(const Row<T>& row, int unit) {
  Unit<T> x{};
  if (row.misaligned == 0 && (unit + 1) * kUnitEntries <= row.count) {
    LEPO_UNROLL
    for (int i = 0; i < kUnitOctets; ++i) {
      x.octet[i] = aligned_octet(row.entries + first_of_octet(unit, i));
    }
  } else {
    // Rare: short code. The octets move up, so that no index is unknown to nvcc.
    LEPO_ROLLED
    for (int i = 0; i < kUnitOctets; ++i) {
      LEPO_UNROLL
      for (int j = 1; j < kUnitOctets; ++j) x.octet[j - 1] = x.octet[j];
      x.octet[kUnitOctets - 1] = load_octet(row, first_of_octet(unit, i));
    }
  }
  return x;
}

}  // namespace lepo
