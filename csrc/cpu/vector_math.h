// exp and log of vectors, Philox blocks and Gumbel numbers, a vector at a time.
//
// Accuracy against float64, in units in the last place: exp within 1 where its result is normal, log
// within 1, exponential numbers within 3. exp of NaN is NaN.
#pragma once

#include "common/gumbel.h"
#include "common/philox.h"
#include "cpu/vector.h"

namespace lepo {
namespace LEPO_CAPABILITY {

// Below this, float32 has no normal exp.
constexpr float kSmallestExponent = -87.3f;

// exp(x) for x <= 88. Where x is below kSmallestExponent it is about 1e-38 and not 0, which is
// enough for a sum. Use `exp_or_zero` where a weight must vanish.
LEPO_INLINE F32 exp(F32 x) {
  // Not max(): a NaN must pass.
  x = x < kSmallestExponent ? broadcast(kSmallestExponent) : x;
  // Adding the magic number rounds to an integer, and leaves it in the sum's low bits.
  const F32 t = x * 0x1.715476p+0f + 0x1.8p23f;
  const F32 n = t - 0x1.8p23f;
  // ln 2 in two parts; n times the first is exact.
  const F32 r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
  // exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2) / 2, minimax, relative error 3e-9.
  F32 p = r * 0x1.6a2434p-10f + 0x1.1239e2p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r + 1.0f;
  // Times 2^n: a product, since adding n to the bits of p would turn some NaNs into numbers.
  return p * as_float((as_bits(t) << 23) + 0x3F800000u);
}

// exp(x), and exactly 0 where x is below kSmallestExponent, -inf included.
LEPO_INLINE F32 exp_or_zero(F32 x) {
  const F32 y = exp(x);
  return x < kSmallestExponent ? F32{} : y;
}

// log(1 + f) + exponent * ln 2 for f in [sqrt(1/2) - 1, sqrt(2) - 1].
LEPO_INLINE F32 log_parts(F32 f, F32 exponent) {
  // log(1 + f) = f - f^2 / 2 + f^3 Q(f), minimax, relative error 8e-10.
  F32 q = f * 0x1.1457aep-4f - 0x1.de3c22p-4f;
  q = q * f + 0x1.e6f06ep-4f;
  q = q * f - 0x1.fc2206p-4f;
  q = q * f + 0x1.2337680p-3f;
  q = q * f - 0x1.555c4ep-3f;
  q = q * f + 0x1.99a4b6p-3f;
  q = q * f - 0x1.000006p-2f;
  q = q * f + 0x1.555548p-2f;
  const F32 square = f * f;
  const F32 small = (q * f * square - 0.5f * square) + exponent * -0x1.bd0106p-13f;
  return exponent * 0x1.63p-1f + (f + small);
}

struct Mantissa {
  F32 value;     // in [sqrt(1/2), sqrt(2))
  F32 exponent;  // x = value * 2^exponent
};

LEPO_INLINE Mantissa split(F32 x) {
  // The bits of sqrt(1/2): what lies above belongs to the next exponent.
  const U32 shifted = as_bits(x) - 0x3F3504F3u;
  const I32 exponent = reinterpret_cast<I32>(shifted) >> 23;
  const U32 mantissa = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  return {as_float(mantissa), __builtin_convertvector(exponent, F32)};
}

// log(x) of positive normal numbers.
LEPO_INLINE F32 log(F32 x) {
  const Mantissa m = split(x);
  return log_parts(m.value - 1.0f, m.exponent);
}

LEPO_INLINE F32 uniform_from_words(U32 words) {
  const F32 v = (__builtin_convertvector(words, F32) + 0.5f) * 0x1p-32f;
  return min(v, broadcast(kLargestUniform));
}

// -log1p(-v): for small v from v itself, since 1 - v rounds it away.
LEPO_INLINE F32 exponential_from_words(U32 words) {
  const F32 v = uniform_from_words(words);
  const Mantissa m = split(1.0f - v);
  const I32 small = v < 0.25f;
  const F32 f = small ? -v : m.value - 1.0f;
  const F32 exponent = small ? F32{} : m.exponent;
  return -log_parts(f, exponent);
}

LEPO_INLINE F32 gumbel_from_words(U32 words) { return -log(exponential_from_words(words)); }

struct WidePhiloxBlock {
  U32 word[4];
};

struct WideProduct {
  U32 low;
  U32 high;
};

LEPO_INLINE U64 multiply_even_lanes(U32 a, U32 b) {
#if defined(__AVX512F__)
  // With a mask of all lanes: the plain form warns of an uninitialised value inside GCC 12's
  // header.
  return reinterpret_cast<U64>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<U64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<U64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const U64 low_half = U64{} + 0xFFFFFFFFull;
  return (reinterpret_cast<U64>(a) & low_half) * (reinterpret_cast<U64>(b) & low_half);
#endif
}

// All 64 bits of the lanes' products with one number.
LEPO_INLINE WideProduct multiply(U32 a, uint32_t factor) {
  const U32 b = broadcast(factor);
  const U64 odd_lanes = U64{} + 0xFFFFFFFF00000000ull;
  const U64 even = multiply_even_lanes(a, b);
  const U64 odd = multiply_even_lanes(reinterpret_cast<U32>(reinterpret_cast<U64>(a) >> 32), b);
  const U64 low = (even & ~odd_lanes) | (odd << 32);
  const U64 high = (even >> 32) | (odd & odd_lanes);
  return {reinterpret_cast<U32>(low), reinterpret_cast<U32>(high)};
}

// Philox blocks of the counters in the lanes.
LEPO_INLINE WidePhiloxBlock philox_blocks(const PhiloxKey& key, U32 blocks) {
  U32 c0 = blocks;
  U32 c1 = broadcast(key.step);
  U32 c2 = broadcast(static_cast<uint32_t>(key.row_key));
  U32 c3 = broadcast(static_cast<uint32_t>(key.row_key >> 32));
  uint32_t k0 = static_cast<uint32_t>(key.seed);
  uint32_t k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const WideProduct even = multiply(c0, kPhiloxMultiplierEven);
    const WideProduct odd = multiply(c2, kPhiloxMultiplierOdd);
    c0 = odd.high ^ c1 ^ k0;
    c1 = odd.low;
    c2 = even.high ^ c3 ^ k1;
    c3 = even.low;
    k0 += kPhiloxKeyStepLow;
    k1 += kPhiloxKeyStepHigh;
  }
  return {{c0, c1, c2, c3}};
}

#if LEPO_VECTOR_BYTES == 64
#define LEPO_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define LEPO_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LEPO_VECTOR_BYTES == 32
#define LEPO_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define LEPO_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LEPO_ZIP_LOW 0, 4, 1, 5
#define LEPO_ZIP_HIGH 2, 6, 3, 7
#endif

// The words of 4 * kLanes ids in a row, from `first_id`, a multiple of 4: word[i] holds those from
// first_id + i * kLanes.
LEPO_INLINE WidePhiloxBlock philox_words_in_order(const PhiloxKey& key, uint32_t first_id,
                                                  uint32_t draw) {
  const uint32_t first_block = first_id / 4 + draw * kPhiloxDrawStride;
  const U32 blocks = reinterpret_cast<U32>(lane_numbers()) + first_block;
  const WidePhiloxBlock p = philox_blocks(key, blocks);
  const U32 even_low = __builtin_shufflevector(p.word[0], p.word[2], LEPO_ZIP_LOW);
  const U32 even_high = __builtin_shufflevector(p.word[0], p.word[2], LEPO_ZIP_HIGH);
  const U32 odd_low = __builtin_shufflevector(p.word[1], p.word[3], LEPO_ZIP_LOW);
  const U32 odd_high = __builtin_shufflevector(p.word[1], p.word[3], LEPO_ZIP_HIGH);
  return {{__builtin_shufflevector(even_low, odd_low, LEPO_ZIP_LOW),
           __builtin_shufflevector(even_low, odd_low, LEPO_ZIP_HIGH),
           __builtin_shufflevector(even_high, odd_high, LEPO_ZIP_LOW),
           __builtin_shufflevector(even_high, odd_high, LEPO_ZIP_HIGH)}};
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
