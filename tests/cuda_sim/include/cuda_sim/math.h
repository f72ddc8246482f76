// Bit intrinsics, integer min and max, and CUDA's arithmetic intrinsics.
//
// The approximate functions err on purpose, by what the CUDA C++ Programming Guide ("Mathematical
// Functions", intrinsic functions) allows: a kernel must be right with any values in the
// documented range, not only with those of the host's accurate ones. kHigh and kLow take the two
// ends of the range, kMixed an end that depends on the argument and the seed.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "cuda_sim/engine.h"

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x != 0 ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= ((x >> bit) & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

// No mixed types: CUDA's conversion of them differs from what a reader expects.
#define LEPO_SIM_MIN_MAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
LEPO_SIM_MIN_MAX(int)
LEPO_SIM_MIN_MAX(unsigned)
LEPO_SIM_MIN_MAX(long)
LEPO_SIM_MIN_MAX(unsigned long)
LEPO_SIM_MIN_MAX(long long)
LEPO_SIM_MIN_MAX(unsigned long long)
#undef LEPO_SIM_MIN_MAX

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }

namespace lepo_sim {

// +1, -1 or 0: the direction in which a function errs at these arguments.
inline int error_sign(float x, float y) {
  switch (math_mode) {
    case MathMode::kExact:
      return 0;
    case MathMode::kHigh:
      return 1;
    case MathMode::kLow:
      return -1;
    case MathMode::kMixed:
      break;
  }
  uint32_t hash = (__float_as_uint(x) ^ math_seed) * 0x9E3779B1u + __float_as_uint(y);
  hash = (hash ^ (hash >> 15)) * 0x85EBCA77u;
  return (hash >> 16) & 1u ? 1 : -1;
}

inline float moved(double exact, double error, float x, float y = 0.0f) {
  const float rounded = static_cast<float>(exact);
  const int sign = exact == 0.0 ? 0 : error_sign(x, y);
  if (sign == 0 || !std::isfinite(rounded) || !std::isfinite(error)) return rounded;
  const float result = static_cast<float>(exact + sign * error);
  // Subnormal results may be flushed.
  return fabsf(result) < FLT_MIN && sign < 0 ? 0.0f : result;
}

inline double unit_in_last_place(double exact) {
  if (std::isnan(exact)) return exact;
  const double size = fabs(exact) < FLT_MIN ? FLT_MIN : fabs(exact);
  return ldexp(1.0, std::ilogb(size) - 23);
}

inline float moved_by_units(double exact, double units, float x, float y = 0.0f) {
  return moved(exact, units * unit_in_last_place(exact), x, y);
}

inline float approximate_log(double exact, double error_near_one, float x) {
  const bool near_one = x >= 0.5f && x <= 2.0f;
  return near_one ? moved(exact, error_near_one, x) : moved_by_units(exact, 3.0, x);
}

}  // namespace lepo_sim

inline float __expf(float x) {
  // ex2.approx of zero is one.
  if (x == 0.0f) return 1.0f;
  return lepo_sim::moved_by_units(exp(double(x)), 2.0 + floor(fabs(1.173 * double(x))), x);
}
inline float __exp10f(float x) {
  if (x == 0.0f) return 1.0f;
  return lepo_sim::moved_by_units(pow(10.0, double(x)), 2.0 + floor(fabs(2.97 * double(x))), x);
}
inline float __logf(float x) { return lepo_sim::approximate_log(log(double(x)), exp2(-21.41), x); }
inline float __log2f(float x) { return lepo_sim::approximate_log(log2(double(x)), exp2(-22), x); }
inline float __log10f(float x) { return lepo_sim::approximate_log(log10(double(x)), exp2(-24), x); }
inline float __fdividef(float x, float y) {
  const float size = fabsf(y);
  // Documented: a divisor above 2^126 gives 0, and NaN where x is infinite.
  if (size > 0x1p126f && size <= FLT_MAX) return std::isinf(x) ? NAN : 0.0f;
  return lepo_sim::moved_by_units(double(x) / y, 2.0, x, y);
}
// Sine and cosine of pi x.
inline void sincospif(float x, float* sine, float* cosine) {
  const double angle = M_PI * remainder(double(x), 2.0);
  *sine = static_cast<float>(sin(angle));
  *cosine = static_cast<float>(cos(angle));
}
inline float rsqrtf(float x) { return lepo_sim::moved_by_units(1.0 / sqrt(double(x)), 2.0, x); }
