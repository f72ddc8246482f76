// LEPO_ENTRY(name) { ... }: a function of a test module that tests can call; `arrays` and `numbers`
// are what the test passed. It also compiles under nvcc.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace lepo_test {

class Arrays {
 public:
  explicit Arrays(void* const* arrays) : arrays_(arrays) {}
  template <typename T>
  T* get(int i) const {
    return static_cast<T*>(arrays_[i]);
  }

 private:
  void* const* arrays_;
};

class Numbers {
 public:
  explicit Numbers(const double* numbers) : numbers_(numbers) {}
  int64_t operator[](int i) const { return static_cast<int64_t>(numbers_[i]); }
  float real(int i) const { return static_cast<float>(numbers_[i]); }

 private:
  const double* numbers_;
};

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "launch failed with error %d\n", static_cast<int>(error));
  abort();
}

}  // namespace lepo_test

#define LEPO_ENTRY(name)                                                        \
  static void name##_entry(const lepo_test::Arrays& arrays,                     \
                           [[maybe_unused]] const lepo_test::Numbers& numbers); \
  extern "C" void name(void* const* arrays, const double* numbers) {            \
    name##_entry(lepo_test::Arrays(arrays), lepo_test::Numbers(numbers));       \
  }                                                                             \
  static void name##_entry(const lepo_test::Arrays& arrays,                     \
                           [[maybe_unused]] const lepo_test::Numbers& numbers)
