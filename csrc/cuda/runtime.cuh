// What lets one kernel source serve nvcc and, in tests without a GPU, g++.
//
// A kernel file includes this instead of CUDA's headers and keeps to the subset that
// tests/cuda_sim/README.md lists. Under nvcc the names below are CUDA's own; with LEPO_CUDA_SIM
// they are the simulator's, which runs one fiber per CUDA thread on the CPU.
//
//   LEPO_SHARED(T, name, N)        a shared array of N, 16-byte aligned, uninitialised
//   LEPO_DYNAMIC_SHARED(T, name)   the launch's shared bytes, as an array of T
//   LEPO_DEVICE                    inlined device function
//   LEPO_UNROLL, LEPO_ROLLED       unrolled loop; loop that is not
//   LEPO_UNROLL_BY(n)              loop unrolled n times
//   lepo_launch(kernel, grid, block, shared_bytes, stream, args...)   returns a cudaError_t
#pragma once

#include "common/portability.h"

#if defined(LEPO_CUDA_SIM)

#include "cuda_sim/cuda_sim.h"

#define LEPO_UNROLL
#define LEPO_ROLLED
#define LEPO_UNROLL_BY(n)

#elif defined(__CUDACC__)

#include <cuda_runtime.h>

#include <utility>

#define LEPO_UNROLL _Pragma("unroll")
#define LEPO_ROLLED _Pragma("unroll 1")
#define LEPO_PRAGMA(words) _Pragma(#words)
#define LEPO_UNROLL_BY(n) LEPO_PRAGMA(unroll n)

#define LEPO_SHARED(T, name, N) __shared__ __align__(16) T name[N]

#define LEPO_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char lepo_dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(lepo_dynamic_shared_memory)

// Above this, a kernel must ask for its dynamic shared memory.
constexpr size_t kLepoSharedBytesWithoutAsking = 48 * 1024;

template <typename... Parameters, typename... Arguments>
[[nodiscard]] inline cudaError_t lepo_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                             size_t shared_bytes, cudaStream_t stream,
                                             Arguments&&... arguments) {
  if (shared_bytes > kLepoSharedBytesWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Arguments>(arguments)...);
  // clang-format on
  return cudaGetLastError();
}

#else
#error \
    "a .cuh file is compiled by nvcc, or by g++ with LEPO_CUDA_SIM (see tests/cuda_sim/README.md)"
#endif

#define LEPO_DEVICE __device__ __forceinline__

namespace lepo {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

}  // namespace lepo
