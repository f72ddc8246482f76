// Vectors of float32 and int32 lanes, as wide as the instruction set a file is compiled for, and
// the few operations on them that the kernels share.
//
// Written with the compiler's vector extension, so that one source serves every instruction set;
// intrinsics stand only where the extension has no word for an instruction that matters.
// Comparisons give lanes of 0 or -1; `mask ? a : b` selects by lane.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common/portability.h"

#if defined(__AVX512F__)
#define LEPO_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define LEPO_VECTOR_BYTES 32
#else
#define LEPO_VECTOR_BYTES 16
#endif

#define LEPO_INLINE static inline __attribute__((always_inline))

namespace lepo {
namespace LEPO_CAPABILITY {

constexpr int kLanes = LEPO_VECTOR_BYTES / 4;

typedef float F32 __attribute__((vector_size(LEPO_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(LEPO_VECTOR_BYTES)));
typedef uint32_t U32 __attribute__((vector_size(LEPO_VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(LEPO_VECTOR_BYTES)));
// As many 16-bit values as a vector has lanes.
typedef uint16_t U16 __attribute__((vector_size(LEPO_VECTOR_BYTES / 2)));

LEPO_INLINE F32 broadcast(float x) { return F32{} + x; }
LEPO_INLINE U32 broadcast(uint32_t x) { return U32{} + x; }
LEPO_INLINE I32 broadcast(int32_t x) { return I32{} + x; }

// 0, 1, 2, ... in the lanes.
LEPO_INLINE I32 lane_numbers() {
  I32 lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

LEPO_INLINE F32 as_float(U32 x) { return reinterpret_cast<F32>(x); }
LEPO_INLINE U32 as_bits(F32 x) { return reinterpret_cast<U32>(x); }

// a > b ? a : b and a < b ? a : b: both return b where a lane of either is NaN. By intrinsics,
// since with one side constant the compiler makes two instructions of the expression.
#if defined(__AVX512F__)
// With a mask of all lanes: the plain form warns of an uninitialised value inside GCC 12's header.
LEPO_INLINE F32 max(F32 a, F32 b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
LEPO_INLINE F32 min(F32 a, F32 b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
#elif defined(__AVX2__)
LEPO_INLINE F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
LEPO_INLINE F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
#elif defined(__SSE2__)
LEPO_INLINE F32 max(F32 a, F32 b) { return _mm_max_ps(a, b); }
LEPO_INLINE F32 min(F32 a, F32 b) { return _mm_min_ps(a, b); }
#else
LEPO_INLINE F32 max(F32 a, F32 b) { return a > b ? a : b; }
LEPO_INLINE F32 min(F32 a, F32 b) { return a < b ? a : b; }
#endif

// Whether any lane of a comparison's result is set.
LEPO_INLINE bool any(I32 mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) !=
         0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask));
#else
  int32_t set = 0;
  for (int i = 0; i < kLanes; ++i) set |= mask[i];
  return set != 0;
#endif
}

// Sums and maxima over lanes, in a fixed order: halves are folded until one lane is left.
LEPO_INLINE float sum_lanes(F32 x) {
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof(x));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// NaN if the fold meets one only by chance: look for NaN elsewhere.
LEPO_INLINE float max_lanes(F32 x) {
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof(x));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
