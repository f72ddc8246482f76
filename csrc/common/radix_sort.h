// Stable sort of 32-bit keys and what they carry, by digits of 8 bits.
//
// Contract: ascending by key; pairs of equal keys keep their order. Four passes over the pairs and
// one that counts, less those whose digit is the same everywhere. Deterministic.
#pragma once

#include <cstring>

#include "common/portability.h"

namespace lepo {

struct KeyedItem {
  uint32_t key;
  int32_t item;
};

constexpr int kRadixDigits = 4;
constexpr int kRadixBins = 256;

LEPO_HOST_DEVICE uint32_t radix_digit(uint32_t key, int digit) {
  return (key >> (8 * digit)) & 255;
}

// Where each bin of a digit starts. False if all keys fall into one bin.
LEPO_HOST_DEVICE bool bin_starts(int64_t* counts, int64_t total) {
  int64_t start = 0;
  for (int bin = 0; bin < kRadixBins; ++bin) {
    const int64_t count = counts[bin];
    if (count == total) return false;
    counts[bin] = start;
    start += count;
  }
  return true;
}

// Sorts `items`; `spare` has room for as many. Returns the one of the two that holds the result.
LEPO_HOST_DEVICE KeyedItem* radix_sort(KeyedItem* items, KeyedItem* spare, int64_t count) {
  int64_t counts[kRadixDigits][kRadixBins];
  std::memset(counts, 0, sizeof(counts));
  for (int64_t i = 0; i < count; ++i) {
    for (int digit = 0; digit < kRadixDigits; ++digit) {
      ++counts[digit][radix_digit(items[i].key, digit)];
    }
  }
  for (int digit = 0; digit < kRadixDigits; ++digit) {
    int64_t* place = counts[digit];
    if (!bin_starts(place, count)) continue;
    for (int64_t i = 0; i < count; ++i) spare[place[radix_digit(items[i].key, digit)]++] = items[i];
    KeyedItem* const sorted = spare;
    spare = items;
    items = sorted;
  }
  return items;
}

}  // namespace lepo
