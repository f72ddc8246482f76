// The SIMD layer under C names, so that tests can hold it against float64 from Python.
//
// Contract: functions over arrays take a count that is a multiple of `lanes()`; those over one
// vector take arrays of `lanes()` entries. Elements are named by a number: 0 is float32,
// 1 bfloat16, 2 float16.
#include "common/gumbel.h"
#include "common/philox.h"
#include "cpu/element.h"
#include "cpu/vector.h"
#include "cpu/vector_math.h"

#define LEPO_EXPORT extern "C" __attribute__((visibility("default")))

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

template <typename Vector, typename T>
Vector read(const T* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename T, typename Vector>
void write(T* to, Vector x) {
  std::memcpy(to, &x, sizeof(x));
}

template <typename Vector, typename In, typename Out, typename Function>
void map(const In* from, Out* to, int64_t count, Function function) {
  for (int64_t i = 0; i < count; i += kLanes) write(to + i, function(read<Vector>(from + i)));
}

template <typename Function>
void map_scalar(const uint32_t* from, float* to, int64_t count, Function function) {
  for (int64_t i = 0; i < count; ++i) to[i] = function(from[i]);
}

// Calls `function` with a value of the element type of that number.
template <typename Function>
void with_element(int element, Function function) {
  switch (element) {
    case 0:
      return function(float{});
    case 1:
      return function(BFloat16{});
    default:
      return function(Float16{});
  }
}

}  // namespace

LEPO_EXPORT int lanes() { return kLanes; }

LEPO_EXPORT void vector_exp(const float* from, float* to, int64_t count) {
  map<F32>(from, to, count, [](F32 x) { return exp(x); });
}

LEPO_EXPORT void vector_exp_or_zero(const float* from, float* to, int64_t count) {
  map<F32>(from, to, count, [](F32 x) { return exp_or_zero(x); });
}

LEPO_EXPORT void vector_log(const float* from, float* to, int64_t count) {
  map<F32>(from, to, count, [](F32 x) { return log(x); });
}

LEPO_EXPORT void vector_uniform(const uint32_t* from, float* to, int64_t count) {
  map<U32>(from, to, count, [](U32 words) { return uniform_from_words(words); });
}

LEPO_EXPORT void vector_exponential(const uint32_t* from, float* to, int64_t count) {
  map<U32>(from, to, count, [](U32 words) { return exponential_from_words(words); });
}

LEPO_EXPORT void vector_gumbel(const uint32_t* from, float* to, int64_t count) {
  map<U32>(from, to, count, [](U32 words) { return gumbel_from_words(words); });
}

LEPO_EXPORT void scalar_uniform(const uint32_t* from, float* to, int64_t count) {
  map_scalar(from, to, count, [](uint32_t word) { return uniform_from_word(word); });
}

LEPO_EXPORT void scalar_exponential(const uint32_t* from, float* to, int64_t count) {
  map_scalar(from, to, count, [](uint32_t word) { return exponential_from_word(word); });
}

LEPO_EXPORT void scalar_gumbel(const uint32_t* from, float* to, int64_t count) {
  map_scalar(from, to, count, [](uint32_t word) { return gumbel_from_word(word); });
}

LEPO_EXPORT void widen(int element, const void* from, float* to, int64_t count) {
  with_element(element, [=](auto type) {
    const auto* values = static_cast<const decltype(type)*>(from);
    for (int64_t i = 0; i < count; i += kLanes) write(to + i, load(values + i));
  });
}

LEPO_EXPORT void narrow(int element, const float* from, void* to, int64_t count) {
  with_element(element, [=](auto type) {
    auto* values = static_cast<decltype(type)*>(to);
    for (int64_t i = 0; i < count; i += kLanes) store(values + i, read<F32>(from + i));
  });
}

LEPO_EXPORT void first_elements(int element, const void* from, int count, float fill, float* to) {
  with_element(element, [=](auto type) {
    const auto* values = static_cast<const decltype(type)*>(from);
    write(to, load_some(values, count, fill));
  });
}

LEPO_EXPORT void store_first(int element, void* to, const float* from, int count) {
  with_element(element, [=](auto type) {
    store_some(static_cast<decltype(type)*>(to), read<F32>(from), count);
  });
}

// One element, read and written back.
LEPO_EXPORT void copy_one(int element, const void* from, void* to) {
  with_element(element, [=](auto type) {
    const auto* values = static_cast<const decltype(type)*>(from);
    store_one(static_cast<decltype(type)*>(to), load_one(values));
  });
}

LEPO_EXPORT void vector_lane_numbers(int32_t* to) { write(to, lane_numbers()); }

LEPO_EXPORT int any_lane(const int32_t* mask) { return any(read<I32>(mask)) ? 1 : 0; }

LEPO_EXPORT float sum_of_lanes(const float* from) { return sum_lanes(read<F32>(from)); }

LEPO_EXPORT float max_of_lanes(const float* from) { return max_lanes(read<F32>(from)); }

LEPO_EXPORT void vector_max(const float* a, const float* b, float* to) {
  write(to, max(read<F32>(a), read<F32>(b)));
}

LEPO_EXPORT void vector_min(const float* a, const float* b, float* to) {
  write(to, min(read<F32>(a), read<F32>(b)));
}

// to[word][lane] = that word of the block in the lane.
LEPO_EXPORT void vector_philox_blocks(uint64_t seed, uint64_t row_key, uint32_t step,
                                      const uint32_t* blocks, uint32_t* to) {
  const WidePhiloxBlock p = philox_blocks({seed, row_key, step}, read<U32>(blocks));
  for (int i = 0; i < 4; ++i) write(to + i * kLanes, p.word[i]);
}

LEPO_EXPORT void vector_philox_words(uint64_t seed, uint64_t row_key, uint32_t step,
                                     uint32_t first_id, uint32_t draw, uint32_t* to) {
  const WidePhiloxBlock p = philox_words_in_order({seed, row_key, step}, first_id, draw);
  for (int i = 0; i < 4; ++i) write(to + i * kLanes, p.word[i]);
}

LEPO_EXPORT uint32_t scalar_philox_word(uint64_t seed, uint64_t row_key, uint32_t step, uint32_t id,
                                        uint32_t draw) {
  return philox_word({seed, row_key, step}, id, draw);
}

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
