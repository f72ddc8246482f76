// Declarations: function and memory qualifiers, indices, shared memory.
#pragma once

#include <new>
#include <type_traits>

#include "cuda_sim/engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
// g++ would give every CUDA thread its own copy, silently.
#define __shared__ static_assert(false, "use LEPO_SHARED or LEPO_DYNAMIC_SHARED instead");

#define threadIdx (::lepo_sim::current->thread)
#define blockIdx (::lepo_sim::current->block)
#define blockDim (::lepo_sim::current->block_size)
#define gridDim (::lepo_sim::current->grid_size)

namespace lepo_sim {

// A shared array that checks its index; it converts to a pointer, as an array does.
template <typename T>
class SharedArray {
  static_assert(std::is_trivially_copyable<T>::value, "shared memory holds plain data");

 public:
  SharedArray(void* data, size_t count, const char* name)
      : data_(static_cast<T*>(data)), count_(count), name_(name) {}

  template <typename Index>
  T& operator[](Index index) const {
    if (index < Index(0) || static_cast<size_t>(index) >= count_) {
      fail("shared array %s: index %lld is outside [0, %zu)", name_, static_cast<long long>(index),
           count_);
    }
    return data_[index];
  }
  operator T*() const { return data_; }

 private:
  T* data_;
  size_t count_;
  const char* name_;
};

}  // namespace lepo_sim

#define LEPO_SHARED(T, name, N)             \
  static const char lepo_key_of_##name = 0; \
  const ::lepo_sim::SharedArray<T> name(    \
      ::lepo_sim::static_shared(&lepo_key_of_##name, #name, sizeof(T) * (N)), (N), #name)

#define LEPO_DYNAMIC_SHARED(T, name)                                  \
  const ::lepo_sim::SharedArray<T> name(::lepo_sim::dynamic_shared(), \
                                        ::lepo_sim::dynamic_shared_bytes() / sizeof(T), #name)
