// The element types of tensors, and how kernels read and write them as float32.
//
// bfloat16 and float16 are storage only: arithmetic is in float32, and a store rounds to nearest,
// ties to even, as torch does. Subnormals, infinities and NaN survive both ways.
#pragma once

#include "cuda/runtime.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace lepo {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LEPO_DEVICE float widen(float x) { return x; }

LEPO_DEVICE float widen(BFloat16 x) { return __uint_as_float(unsigned{x.bits} << 16); }

LEPO_DEVICE float widen(Float16 x) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return lepo_sim::float_from_half_bits(x.bits);
#endif
}

template <typename T>
LEPO_DEVICE T narrow(float x);

template <>
LEPO_DEVICE float narrow<float>(float x) {
  return x;
}

template <>
LEPO_DEVICE BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDACC__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {lepo_sim::bfloat16_bits(x)};
#endif
}

template <>
LEPO_DEVICE Float16 narrow<Float16>(float x) {
#if defined(__CUDACC__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {lepo_sim::half_bits(x)};
#endif
}

constexpr int kVectorBytes = 16;

// As many elements as one 16-byte access moves.
template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(T));
  T element[kSize];
};

// `from` and `to` are aligned to 16 bytes. Loads go through the read-only path: nothing may write
// that memory during the launch.
template <typename T>
LEPO_DEVICE Vector<T> load_vector(const T* from) {
#if defined(__CUDACC__)
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
  return *reinterpret_cast<const Vector<T>*>(&raw);
#else
  return __ldg(reinterpret_cast<const Vector<T>*>(from));
#endif
}

template <typename T>
LEPO_DEVICE void store_vector(T* to, const Vector<T>& x) {
#if defined(__CUDACC__)
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&x);
#else
  lepo_sim::store_aligned(reinterpret_cast<Vector<T>*>(to), x);
#endif
}

}  // namespace lepo
