#include "cuda/block_reduce.cuh"
#include "cuda_sim/entry.h"

namespace reductions {

// One block per row: maximum, sum, log-sum-exp and entropy. The scratch is used again and again.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    row_statistics_kernel(const float* __restrict__ x,  // [N, V]
                          int columns,
                          float* __restrict__ out) {  // [N, 4]
  LEPO_SHARED(float, scratch, kThreads / lepo::kWarpSize);
  LEPO_SHARED(lepo::LogSumExp, states, kThreads / lepo::kWarpSize);
  const float* row = x + size_t{blockIdx.x} * static_cast<size_t>(columns);
  float max = -INFINITY;
  float sum = 0.0f;
  lepo::LogSumExp state = lepo::kEmptyLogSumExp;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += kThreads) {
    max = lepo::Max()(max, row[i]);
    sum += row[i];
    state = lepo::with(state, row[i]);
  }
  max = lepo::block_reduce<kThreads>(max, lepo::Max(), scratch);
  sum = lepo::block_reduce<kThreads>(sum, lepo::Sum(), scratch);
  state = lepo::block_reduce<kThreads>(state, lepo::MergeLogSumExp(), states);
  // Any thread has the result: take another one in each row.
  if (threadIdx.x == blockIdx.x * 37 % kThreads) {
    float* mine = out + size_t{blockIdx.x} * 4;
    mine[0] = max;
    mine[1] = sum;
    mine[2] = state.value();
    mine[3] = state.entropy();
  }
}

// Exclusive sums of two numbers per thread, one after the other with the same scratch.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    scan_kernel(const int* __restrict__ x,  // [2, kThreads]
                int* __restrict__ out) {    // [2, kThreads + 1]
  LEPO_SHARED(int, scratch, kThreads / lepo::kWarpSize);
  const int thread = static_cast<int>(threadIdx.x);
  for (int row = 0; row < 2; ++row) {
    int total;
    int* mine = out + row * (kThreads + 1);
    mine[thread] = lepo::block_exclusive_sum<kThreads>(x[row * kThreads + thread], scratch, total);
    if (thread == 0) mine[kThreads] = total;
  }
}

// What associative but not commutative combination shows: in which order it happened.
struct Append {
  LEPO_DEVICE unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    // (length, polynomial hash) pairs: the hash of the two texts one after the other.
    const unsigned long long length = (a >> 48) + (b >> 48);
    unsigned long long shift = 1;
    for (unsigned long long i = 0; i < b >> 48; ++i) shift = shift * 31 % 65521;
    const unsigned long long hash = ((a & 0xFFFFFFFF) * shift + (b & 0xFFFFFFFF)) % 65521;
    return length << 48 | hash;
  }
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    order_kernel(const int* __restrict__ x,               // [kThreads]
                 unsigned long long* __restrict__ out) {  // [kThreads]
  LEPO_SHARED(unsigned long long, scratch, kThreads / lepo::kWarpSize);
  const auto letter = static_cast<unsigned long long>(x[threadIdx.x]);
  const unsigned long long mine = 1ull << 48 | letter;
  out[threadIdx.x] = lepo::block_reduce<kThreads>(mine, Append(), scratch);
}

template <int kThreads>
cudaError_t launch(const lepo_test::Arrays& arrays, int64_t what, int64_t rows, int64_t columns) {
  if (what == 1) {
    return lepo_launch(scan_kernel<kThreads>, dim3(1), dim3(kThreads), 0, cudaStream_t{},
                       arrays.get<int>(0), arrays.get<int>(1));
  }
  if (what == 2) {
    return lepo_launch(order_kernel<kThreads>, dim3(1), dim3(kThreads), 0, cudaStream_t{},
                       arrays.get<int>(0), arrays.get<unsigned long long>(1));
  }
  return lepo_launch(row_statistics_kernel<kThreads>, dim3(static_cast<unsigned>(rows)),
                     dim3(kThreads), 0, cudaStream_t{}, arrays.get<float>(0),
                     static_cast<int>(columns), arrays.get<float>(1));
}

cudaError_t launch(const lepo_test::Arrays& arrays, int64_t threads, int64_t what, int64_t rows,
                   int64_t columns) {
  switch (threads) {
    case 32:
      return launch<32>(arrays, what, rows, columns);
    case 64:
      return launch<64>(arrays, what, rows, columns);
    case 256:
      return launch<256>(arrays, what, rows, columns);
    default:
      return launch<1024>(arrays, what, rows, columns);
  }
}

}  // namespace reductions

// arrays: x [N, V], out [N, 4]; numbers: threads, N, V
LEPO_ENTRY(row_statistics) {
  lepo_test::check(reductions::launch(arrays, numbers[0], 0, numbers[1], numbers[2]));
}

// arrays: x [2, T], out [2, T + 1]; numbers: threads
LEPO_ENTRY(scan) { lepo_test::check(reductions::launch(arrays, numbers[0], 1, 1, 0)); }

// arrays: x [T], out [T]; numbers: threads
LEPO_ENTRY(order) { lepo_test::check(reductions::launch(arrays, numbers[0], 2, 1, 0)); }
