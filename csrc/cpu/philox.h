// Philox words of given entries.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace lepo {

struct PhiloxKernels {
  // words[i] = the word of ids[i], for ids in [0, 2^26).
  void (*words)(uint64_t seed, uint64_t row_key, uint32_t step, uint32_t draw, const int64_t* ids,
                int64_t count, int64_t* words);
};

LEPO_DECLARE_KERNELS(PhiloxKernels, philox_kernels)

}  // namespace lepo
