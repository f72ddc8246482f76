// Warp primitives. None of them orders memory: only __syncwarp does.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_sim/engine.h"

namespace lepo_sim {

template <typename T>
Slot pack(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 32 and 64 bits");
  Slot slot{};
  std::memcpy(slot.word, &value, sizeof(T));
  return slot;
}

template <typename T>
T unpack(const Slot& slot) {
  T value;
  std::memcpy(&value, slot.word, sizeof(T));
  return value;
}

// `source` is a lane number, or outside the segment of `width` lanes: then the own value.
template <typename T>
T shuffle(unsigned mask, T value, int source, int first, int width, Site site) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) {
    fail("shuffle of width %d: expected 1, 2, 4, 8, 16 or 32", width);
  }
  const bool inside = source >= first && source < first + width;
  const int lane = inside ? source : static_cast<int>(current->lane);
  return unpack<T>(warp_exchange(WarpOp::kShuffle, mask, pack(value), lane, site));
}

inline int segment(int width) { return static_cast<int>(current->lane) & ~(width - 1); }

// Folds f over the lanes of `mask`, lowest first.
template <typename T, typename R, typename F>
R fold(WarpOp op, unsigned mask, T value, R result, Site site, F f) {
  Slot all[32];
  warp_gather(op, mask, pack(value), all, site);
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane) & 1u) result = f(result, lane, unpack<T>(all[lane]));
  }
  return result;
}

}  // namespace lepo_sim

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              lepo_sim::Site site = lepo_sim::Site::here()) {
  const int first = lepo_sim::segment(width);
  return lepo_sim::shuffle(mask, value, first + (source & (width - 1)), first, width, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  lepo_sim::Site site = lepo_sim::Site::here()) {
  const int source = static_cast<int>(lepo_sim::current->lane) ^ lane_mask;
  // Lower segments can be read, higher ones not.
  const int first = lepo_sim::segment(width);
  return source < first ? lepo_sim::shuffle(mask, value, source, 0, 32, site)
                        : lepo_sim::shuffle(mask, value, source, first, width, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   lepo_sim::Site site = lepo_sim::Site::here()) {
  const int source = static_cast<int>(lepo_sim::current->lane + delta);
  return lepo_sim::shuffle(mask, value, source, lepo_sim::segment(width), width, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 lepo_sim::Site site = lepo_sim::Site::here()) {
  const int source = static_cast<int>(lepo_sim::current->lane) - static_cast<int>(delta);
  return lepo_sim::shuffle(mask, value, source, lepo_sim::segment(width), width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              lepo_sim::Site site = lepo_sim::Site::here()) {
  return lepo_sim::fold(
      lepo_sim::WarpOp::kBallot, mask, predicate, 0u, site,
      [](unsigned votes, int lane, int vote) { return votes | unsigned(vote != 0) << lane; });
}
inline int __any_sync(unsigned mask, int predicate, lepo_sim::Site site = lepo_sim::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, lepo_sim::Site site = lepo_sim::Site::here()) {
  return __ballot_sync(mask, predicate, site) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, lepo_sim::Site site = lepo_sim::Site::here()) {
  return lepo_sim::fold(
      lepo_sim::WarpOp::kMatch, mask, value, 0u, site,
      [=](unsigned same, int lane, T other) { return same | unsigned(other == value) << lane; });
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, lepo_sim::Site site = lepo_sim::Site::here()) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "CUDA reduces 32-bit integers");
  return lepo_sim::fold(lepo_sim::WarpOp::kReduce, mask, value, T(0), site,
                        [](T sum, int, T other) { return T(sum + other); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, lepo_sim::Site site = lepo_sim::Site::here()) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "CUDA reduces 32-bit integers");
  return lepo_sim::fold(lepo_sim::WarpOp::kReduce, mask, value, value, site,
                        [](T most, int, T other) { return most > other ? most : other; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, lepo_sim::Site site = lepo_sim::Site::here()) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "CUDA reduces 32-bit integers");
  return lepo_sim::fold(lepo_sim::WarpOp::kReduce, mask, value, value, site,
                        [](T least, int, T other) { return least < other ? least : other; });
}
