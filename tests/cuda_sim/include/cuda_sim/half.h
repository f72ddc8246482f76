// Conversions to and from the 16-bit floating-point types, by their definition.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda_sim/math.h"

namespace lepo_sim {

inline float float_from_half_bits(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float size = ldexpf(static_cast<float>(mantissa + (exponent != 0 ? 1024 : 0)),
                      (exponent != 0 ? exponent : 1) - 25);
  if (exponent == 31) size = mantissa != 0 ? NAN : INFINITY;
  return bits & 0x8000u ? -size : size;
}

inline uint16_t half_bits(float x) {
  const auto sign = static_cast<uint16_t>((__float_as_uint(x) >> 16) & 0x8000u);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7FFFu);
  const double size = std::fabs(double(x));
  // 65520 is half way to the number that would follow the largest.
  if (size >= 65520.0) return static_cast<uint16_t>(sign | 0x7C00u);
  const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
  // Exact but for the rounding, to nearest with ties to even.
  const double units = std::nearbyint(std::ldexp(size, 10 - exponent));
  // 1024 units above the exponent's start: a carry goes over into the exponent by itself.
  const int bits = (exponent + 14) * 1024 + static_cast<int>(units);
  return static_cast<uint16_t>(sign | bits);
}

inline uint16_t bfloat16_bits(float x) {
  const unsigned bits = __float_as_uint(x);
  if (std::isnan(x)) return 0x7FFFu;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace lepo_sim
