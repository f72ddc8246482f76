// Barriers, fences and atomics.
//
// For the race check an atomic is relaxed, as in CUDA: it orders nothing but itself. Only barriers,
// and fences around atomics, do.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_sim/engine.h"

inline void __syncthreads(lepo_sim::Site site = lepo_sim::Site::here()) {
  lepo_sim::block_barrier(0, site);
}
inline int __syncthreads_or(int vote, lepo_sim::Site site = lepo_sim::Site::here()) {
  return lepo_sim::block_barrier(vote, site).any;
}
inline int __syncthreads_and(int vote, lepo_sim::Site site = lepo_sim::Site::here()) {
  return lepo_sim::block_barrier(vote, site).all;
}
inline int __syncthreads_count(int vote, lepo_sim::Site site = lepo_sim::Site::here()) {
  return lepo_sim::block_barrier(vote, site).count;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, lepo_sim::Site site = lepo_sim::Site::here()) {
  lepo_sim::warp_barrier(mask, site);
}
inline void __threadfence() {
  lepo_sim::preemption_point();
  lepo_sim::memory_fence();
}
// Waiting for another block: without this in the loop, that block would never run.
inline void __nanosleep(unsigned) { lepo_sim::yield_thread(); }

namespace lepo_sim {

template <typename T>
using AtomicWord = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// *address = f(*address); returns the old value.
template <typename T, typename F>
T read_modify_write(T* address, F f) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are of 32 or 64 bits");
  using Word = AtomicWord<T>;
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    fail("misaligned atomic of %zu bytes at %p", sizeof(T), static_cast<void*>(address));
  }
  preemption_point();
  Word* word = reinterpret_cast<Word*>(address);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  T before;
  Word changed;
  do {
    std::memcpy(&before, &old, sizeof(T));
    const T after = f(before);
    std::memcpy(&changed, &after, sizeof(T));
  } while (
      !__atomic_compare_exchange_n(word, &old, changed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  atomic_happened(address);
  return before;
}

// The value's type is the address's, as in CUDA: no silent conversion.
template <typename T>
using Same = std::common_type_t<T>;

}  // namespace lepo_sim

template <typename T>
T atomicAdd(T* address, lepo_sim::Same<T> value) {
  return lepo_sim::read_modify_write(address, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T* address, lepo_sim::Same<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has atomicMax for integers only");
  return lepo_sim::read_modify_write(address, [=](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicMin(T* address, lepo_sim::Same<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has atomicMin for integers only");
  return lepo_sim::read_modify_write(address, [=](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicOr(T* address, lepo_sim::Same<T> value) {
  return lepo_sim::read_modify_write(address, [=](T old) { return T(old | value); });
}
template <typename T>
T atomicAnd(T* address, lepo_sim::Same<T> value) {
  return lepo_sim::read_modify_write(address, [=](T old) { return T(old & value); });
}
template <typename T>
T atomicExch(T* address, lepo_sim::Same<T> value) {
  return lepo_sim::read_modify_write(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, lepo_sim::Same<T> expected, lepo_sim::Same<T> value) {
  return lepo_sim::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}
