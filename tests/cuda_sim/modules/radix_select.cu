#include "cuda/bitonic_sort.cuh"
#include "cuda/radix_select.cuh"
#include "cuda/row.cuh"
#include "cuda_sim/entry.h"

namespace selection {

// One block per row: the k largest, sorted. The entries are in dynamic shared memory, or, where
// `room` is given, in global memory, and sorted by tiles.
template <int kThreads, typename T>
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(const T* __restrict__ x,  // [N, V]
                 int columns, int k,
                 float* __restrict__ values,  // [N, k]
                 int* __restrict__ ids,       // [N, k]
                 uint64_t* room) {            // [N, next_power_of_two(k)] or nullptr
  LEPO_DYNAMIC_SHARED(uint64_t, shared_entries);
  LEPO_SHARED(lepo::RadixScratch<kThreads>, scratch, 1);
  LEPO_SHARED(uint64_t, tile, 2 * kThreads);
  const size_t row = blockIdx.x;
  const T* mine = x + row * static_cast<size_t>(columns);
  uint64_t* entries = shared_entries;
  if (room != nullptr) entries = room + row * static_cast<size_t>(lepo::next_power_of_two(k));
  const auto visit = [&](auto f) { lepo::visit_row<kThreads>(mine, columns, f); };
  lepo::radix_select<kThreads>(visit, columns, k, entries, scratch[0]);
  if (room == nullptr) {
    lepo::sort_entries<kThreads>(entries, k);
  } else {
    lepo::sort_long_entries<kThreads, 2 * kThreads>(entries, k, tile);
  }
  // Backwards: not the places that the thread sorted.
  for (int i = k - 1 - static_cast<int>(threadIdx.x); i >= 0; i -= kThreads) {
    values[row * static_cast<size_t>(k) + i] = lepo::value_of_entry(entries[i]);
    ids[row * static_cast<size_t>(k) + i] = lepo::id_of_entry(entries[i], columns - 1);
  }
}

template <int kThreads, typename T>
void top_k(const lepo_test::Arrays& arrays, const lepo_test::Numbers& numbers) {
  const int columns = static_cast<int>(numbers[1]);
  const int k = static_cast<int>(numbers[2]);
  size_t bytes = sizeof(uint64_t);
  while (bytes < sizeof(uint64_t) * static_cast<size_t>(k)) bytes *= 2;
  const bool in_global = numbers[3] != 0;
  // The offset makes rows that begin at any address.
  const T* x = arrays.get<T>(0) + numbers[4];
  lepo_test::check(lepo_launch(top_k_kernel<kThreads, T>, dim3(static_cast<unsigned>(numbers[0])),
                               dim3(kThreads), in_global ? 0 : bytes, cudaStream_t{}, x, columns, k,
                               arrays.get<float>(1), arrays.get<int>(2),
                               in_global ? arrays.get<uint64_t>(3) : nullptr));
}

}  // namespace selection

// arrays: x [offset + N * V], values [N, k], ids [N, k], room
// numbers: N, V, k, whether the entries are in `room`, offset
LEPO_ENTRY(top_k_float32) { selection::top_k<256, float>(arrays, numbers); }
LEPO_ENTRY(top_k_bfloat16) { selection::top_k<256, lepo::BFloat16>(arrays, numbers); }
LEPO_ENTRY(top_k_float16) { selection::top_k<256, lepo::Float16>(arrays, numbers); }
LEPO_ENTRY(top_k_float32_of_64_threads) { selection::top_k<64, float>(arrays, numbers); }
LEPO_ENTRY(top_k_float32_of_1024_threads) { selection::top_k<1024, float>(arrays, numbers); }
