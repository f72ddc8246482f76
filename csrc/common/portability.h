// What lets one source serve g++ on the host and nvcc for host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LEPO_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Internal linkage: a file is compiled once per instruction set, and a function that the linker
// merged across them could run on a machine that lacks its instructions.
#define LEPO_HOST_DEVICE static inline __attribute__((always_inline))
#endif
