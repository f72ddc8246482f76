// CUDA's built-in types, as far as kernels may use them; no toolkit is needed.
#pragma once

#include <cstddef>
#include <cstdint>

#define LEPO_SIM_VECTOR2(T, name, bytes) \
  struct alignas(bytes) name {           \
    T x, y;                              \
  };
#define LEPO_SIM_VECTOR4(T, name, bytes) \
  struct alignas(bytes) name {           \
    T x, y, z, w;                        \
  };
LEPO_SIM_VECTOR2(float, float2, 8)
LEPO_SIM_VECTOR4(float, float4, 16)
LEPO_SIM_VECTOR2(int, int2, 8)
LEPO_SIM_VECTOR4(int, int4, 16)
LEPO_SIM_VECTOR2(unsigned, uint2, 8)
LEPO_SIM_VECTOR4(unsigned, uint4, 16)
#undef LEPO_SIM_VECTOR2
#undef LEPO_SIM_VECTOR4

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct lepo_sim_stream;
using cudaStream_t = lepo_sim_stream*;

enum cudaError_t { cudaSuccess = 0, cudaErrorNoKernelImageForDevice = 209 };
