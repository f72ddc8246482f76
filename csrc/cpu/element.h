// The element types of tensors, and how a vector of them is read as float32 and written back.
//
// bfloat16 and float16 are storage only: arithmetic is in float32, and a store rounds to nearest,
// ties to even, as torch does. Subnormals, infinities and NaN survive both ways.
#pragma once

#include "cpu/vector.h"

namespace lepo {
namespace LEPO_CAPABILITY {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LEPO_INLINE F32 widen_bfloat16(U16 raw) {
  return as_float(__builtin_convertvector(raw, U32) << 16);
}

LEPO_INLINE U16 narrow_bfloat16(F32 x) {
  const U32 bits = as_bits(x);
  const U32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const U32 quiet_nan = broadcast(uint32_t{0x7FC0});
  return __builtin_convertvector(x == x ? rounded : quiet_nan, U16);
}

LEPO_INLINE F32 widen_float16(U16 raw) {
#if defined(__AVX512F__)
  // With a mask of all lanes: the plain form warns of an uninitialised value inside GCC 12's
  // header.
  return _mm512_maskz_cvtph_ps(0xFFFF, reinterpret_cast<__m256i>(raw));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(raw));
#else
  const U32 wide = __builtin_convertvector(raw, U32);
  // Exponent and mantissa, moved and scaled by 2^112: exact for subnormals too.
  const F32 scaled = as_float((wide & 0x7FFFu) << 13) * 0x1p112f;
  const U32 special = as_bits(scaled) | 0x7F800000u;
  const U32 magnitude = (wide & 0x7C00u) == 0x7C00u ? special : as_bits(scaled);
  return as_float(magnitude | ((wide & 0x8000u) << 16));
#endif
}

LEPO_INLINE U16 narrow_float16(F32 x) {
#if defined(__AVX512F__)
  return reinterpret_cast<U16>(
      _mm512_maskz_cvtps_ph(0xFFFF, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return reinterpret_cast<U16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const U32 bits = as_bits(x);
  const U32 size = bits & 0x7FFFFFFFu;
  // Normal: drop 13 bits of the mantissa, rounding to even, and rebias the exponent by 112.
  const U32 normal = (size - (112u << 23) + 0xFFFu + ((size >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 makes the sum's mantissa the subnormal, rounded by the addition.
  const U32 subnormal = as_bits(as_float(size) + 0.5f) - 0x3F000000u;
  U32 half = size < 0x38800000u ? subnormal : normal;
  // 65520 and above round to infinity.
  half = size >= 0x477FF000u ? broadcast(uint32_t{0x7C00}) : half;
  half = size > 0x7F800000u ? broadcast(uint32_t{0x7E00}) : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), U16);
#endif
}

LEPO_INLINE F32 load(const float* from) {
  F32 x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

LEPO_INLINE void store(float* to, F32 x) { std::memcpy(to, &x, sizeof(x)); }

LEPO_INLINE F32 load(const BFloat16* from) {
  U16 raw;
  std::memcpy(&raw, from, sizeof(raw));
  return widen_bfloat16(raw);
}

LEPO_INLINE void store(BFloat16* to, F32 x) {
  const U16 raw = narrow_bfloat16(x);
  std::memcpy(to, &raw, sizeof(raw));
}

LEPO_INLINE F32 load(const Float16* from) {
  U16 raw;
  std::memcpy(&raw, from, sizeof(raw));
  return widen_float16(raw);
}

LEPO_INLINE void store(Float16* to, F32 x) {
  const U16 raw = narrow_float16(x);
  std::memcpy(to, &raw, sizeof(raw));
}

// The first `count` (< kLanes) elements, `fill` in the lanes behind them; reads nothing beyond.
template <typename T>
LEPO_INLINE F32 load_some(const T* from, int count, float fill) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  const F32 x = load(padded);
  return lane_numbers() < count ? x : broadcast(fill);
}

template <typename T>
LEPO_INLINE void store_some(T* to, F32 x, int count) {
  T padded[kLanes];
  store(padded, x);
  std::memcpy(to, padded, count * sizeof(T));
}

template <typename T>
LEPO_INLINE float load_one(const T* from) {
  return load_some(from, 1, 0.0f)[0];
}

LEPO_INLINE float load_one(const float* from) { return *from; }

template <typename T>
LEPO_INLINE void store_one(T* to, float x) {
  store_some(to, broadcast(x), 1);
}

LEPO_INLINE void store_one(float* to, float x) { *to = x; }

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
