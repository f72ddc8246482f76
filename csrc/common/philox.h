// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the
// place of every field in its counter.
//
// Contract: the words of (seed, row key, step, id, draw) are bit-identical on every backend. The
// key is (seed low, seed high), the counter (id / 4 + draw * 2^24, step, row key low, row key
// high), and entry `id` reads word id % 4 of its block.
#pragma once

#include "common/portability.h"

namespace lepo {

constexpr uint32_t kPhiloxMultiplierEven = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplierOdd = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStepLow = 0x9E3779B9u;
constexpr uint32_t kPhiloxKeyStepHigh = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxDrawStride = 1u << 24;

struct PhiloxBlock {
  uint32_t word[4];
};

// All that noise depends on, but for the entry.
struct PhiloxKey {
  uint64_t seed;
  uint64_t row_key;
  uint32_t step;
};

LEPO_HOST_DEVICE PhiloxBlock philox_block(const PhiloxKey& key, uint32_t block) {
  uint32_t c0 = block;
  uint32_t c1 = key.step;
  uint32_t c2 = static_cast<uint32_t>(key.row_key);
  uint32_t c3 = static_cast<uint32_t>(key.row_key >> 32);
  uint32_t k0 = static_cast<uint32_t>(key.seed);
  uint32_t k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t even = static_cast<uint64_t>(kPhiloxMultiplierEven) * c0;
    const uint64_t odd = static_cast<uint64_t>(kPhiloxMultiplierOdd) * c2;
    c0 = static_cast<uint32_t>(odd >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(odd);
    c2 = static_cast<uint32_t>(even >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(even);
    k0 += kPhiloxKeyStepLow;
    k1 += kPhiloxKeyStepHigh;
  }
  return {{c0, c1, c2, c3}};
}

LEPO_HOST_DEVICE uint32_t philox_word(const PhiloxKey& key, uint32_t id, uint32_t draw) {
  const PhiloxBlock block = philox_block(key, id / 4 + draw * kPhiloxDrawStride);
  // Selects: an index that varies would put the block into a GPU's local memory.
  const uint32_t low = id & 1 ? block.word[1] : block.word[0];
  const uint32_t high = id & 1 ? block.word[3] : block.word[2];
  return id & 2 ? high : low;
}

}  // namespace lepo
