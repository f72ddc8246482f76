// The toolkit's header, as far as csrc/cuda/*.cu and the bindings use it; g++ alone finds it here.
#pragma once

#include <cstring>

#include "cuda_sim/types.h"

// An H100's: what depends on them is tested with the numbers it will have.
constexpr int kSimulatedMultiprocessors = 132;
constexpr int kSimulatedSharedBytes = 227 * 1024;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the simulator"; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? kSimulatedMultiprocessors
                                                       : kSimulatedSharedBytes;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  std::memset(to, byte, count);
  return cudaSuccess;
}
