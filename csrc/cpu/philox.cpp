// Philox words of given entries.
//
// Contract: one block of ten rounds per entry, a vector of entries at a time; one read of the ids,
// one write of the words; deterministic, bit-identical to every other backend.
#include "cpu/philox.h"

#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

void words(uint64_t seed, uint64_t row_key, uint32_t step, uint32_t draw, const int64_t* ids,
           int64_t count, int64_t* out) {
  const PhiloxKey key{seed, row_key, step};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int width = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    U32 id{};
    for (int lane = 0; lane < width; ++lane) id[lane] = static_cast<uint32_t>(ids[i + lane]);
    const WidePhiloxBlock block = philox_blocks(key, id / 4 + draw * kPhiloxDrawStride);
    for (int lane = 0; lane < width; ++lane) out[i + lane] = block.word[id[lane] % 4][lane];
  }
}

}  // namespace

extern const PhiloxKernels philox_kernels;
const PhiloxKernels philox_kernels = {&words};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
