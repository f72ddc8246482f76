// Loads and stores whose alignment CUDA requires.
#pragma once

#include "cuda_sim/engine.h"

namespace lepo_sim {

template <typename T>
void check_aligned(const char* what, const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) {
    fail("misaligned %s of %zu bytes at %p", what, sizeof(T), static_cast<const void*>(address));
  }
}

template <typename T>
void store_aligned(T* address, const T& value) {
  check_aligned("store", address);
  *address = value;
}

}  // namespace lepo_sim

template <typename T>
T __ldg(const T* address) {
  lepo_sim::check_aligned("load", address);
  return *address;
}
// Reads past the caches: the value may change between two reads.
template <typename T>
T __ldcg(const T* address) {
  lepo_sim::check_aligned("load", address);
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  lepo_sim::check_aligned("load", address);
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  lepo_sim::check_aligned("store", address);
  *address = value;
}
