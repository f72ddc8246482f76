// One small kernel per feature of CUDA that the simulator has.
#include "cuda/element.cuh"
#include "cuda_sim/entry.h"

using lepo::kAllLanes;
using lepo_test::check;

// Not anonymous: messages find the names of kernels among the library's symbols.
namespace features {

// Where every thread of a grid of any shape is.
__global__ void indices_kernel(int* out) {  // [blocks, threads, 3]
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  int* mine = out + (block * threads + thread) * 3;
  mine[0] = static_cast<int>(threadIdx.x + 100 * blockIdx.x);
  mine[1] = static_cast<int>(threadIdx.y + 100 * blockIdx.y);
  mine[2] = static_cast<int>(threadIdx.z + 100 * blockIdx.z);
}

__global__ void shuffle_kernel(const int* x, int* out) {  // [32] -> [8, 32]
  const int lane = static_cast<int>(threadIdx.x);
  const int mine = x[lane];
  out[0 * 32 + lane] = __shfl_sync(kAllLanes, mine, lane + 5);
  out[1 * 32 + lane] = __shfl_sync(kAllLanes, mine, 3, 8);
  out[2 * 32 + lane] = __shfl_xor_sync(kAllLanes, mine, 9);
  out[3 * 32 + lane] = __shfl_xor_sync(kAllLanes, mine, 4, 4);
  out[4 * 32 + lane] = __shfl_up_sync(kAllLanes, mine, 3);
  out[5 * 32 + lane] = __shfl_up_sync(kAllLanes, mine, 3, 8);
  out[6 * 32 + lane] = __shfl_down_sync(kAllLanes, mine, 3);
  out[7 * 32 + lane] = __shfl_down_sync(kAllLanes, mine, 3, 16);
}

// Two halves of a warp that go separate ways vote apart.
__global__ void votes_kernel(const int* x, unsigned* out) {  // [32] -> [7, 32]
  const unsigned lane = threadIdx.x;
  const unsigned half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  if (lane < 16) {
    out[lane] = __ballot_sync(half, x[lane] > 2);
  } else {
    out[lane] = __ballot_sync(half, x[lane] > 2);
  }
  out[1 * 32 + lane] = static_cast<unsigned>(__any_sync(half, x[lane] == 0));
  out[2 * 32 + lane] = static_cast<unsigned>(__all_sync(half, x[lane] >= 0));
  out[3 * 32 + lane] = __match_any_sync(kAllLanes, x[lane]);
  out[4 * 32 + lane] = static_cast<unsigned>(__reduce_add_sync(half, x[lane]));
  out[5 * 32 + lane] = static_cast<unsigned>(__reduce_max_sync(half, x[lane]));
  out[6 * 32 + lane] = static_cast<unsigned>(__reduce_min_sync(half, x[lane]));
}

__global__ void block_votes_kernel(const int* x, int* out) {  // [T] -> [3, T]
  const unsigned i = threadIdx.x;
  out[i] = __syncthreads_or(x[i] == 1);
  out[blockDim.x + i] = __syncthreads_and(x[i] < 9);
  out[2 * blockDim.x + i] = __syncthreads_count(x[i] > 3);
}

// Reverses each block's part by way of dynamic shared memory.
__global__ void reverse_kernel(float* x) {  // [blocks, T]
  LEPO_DYNAMIC_SHARED(float, part);
  float* mine = x + blockIdx.x * blockDim.x;
  part[threadIdx.x] = mine[threadIdx.x];
  __syncthreads();
  mine[threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
}

// Threads that end early do not hold up the others' barriers.
__global__ void early_exit_kernel(int* out, int leave) {
  LEPO_SHARED(int, values, 128);
  if (static_cast<int>(threadIdx.x) >= leave) return;
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[leave - 1 - static_cast<int>(threadIdx.x)];
}

__global__ void atomics_kernel(const int* x, int* ints, unsigned long long* longs, float* floats) {
  const int mine = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&ints[0], mine);
  atomicMax(&ints[1], mine);
  atomicMin(&ints[2], mine);
  atomicOr(&ints[3], mine);
  atomicAnd(&ints[4], ~mine);
  atomicAdd(&longs[0], static_cast<unsigned long long>(mine) << 32);
  atomicAdd(&floats[0], 0.25f);
  // Only one of all threads finds the zero.
  if (atomicCAS(&ints[5], 0, mine + 1) == 0) atomicAdd(&ints[6], 1);
  atomicExch(&ints[7], 7);
}

// The last block to finish merges all blocks' parts, without a second launch.
__global__ void last_block_kernel(const float* x, float* parts, unsigned* ticket, float* sum) {
  LEPO_SHARED(bool, is_last, 1);
  if (threadIdx.x == 0) {
    float part = 0.0f;
    for (unsigned i = 0; i < blockDim.x; ++i) part += x[blockIdx.x * blockDim.x + i];
    parts[blockIdx.x] = part;
    __threadfence();
    is_last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 1) return;
  float total = 0.0f;
  for (unsigned block = 0; block < gridDim.x; ++block) total += parts[block];
  *sum = total;
}

// Every block waits for all others: the grid must be resident.
__global__ void grid_barrier_kernel(int* parts, unsigned* arrived, int* out) {
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    atomicAdd(arrived, 1u);
    while (atomicAdd(arrived, 0u) < gridDim.x) __nanosleep(20);
    __threadfence();
    int sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += parts[block];
    out[blockIdx.x] = sum;
  }
}

template <typename T>
__global__ void convert_kernel(const T* x, float* wide, const float* y, T* narrow, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    wide[i] = lepo::widen(x[i]);
    narrow[i] = lepo::narrow<T>(y[i]);
  }
}

template <typename T>
__global__ void copy_vectors_kernel(const T* x, T* out) {
  const int i = static_cast<int>(threadIdx.x) * lepo::Vector<T>::kSize;
  lepo::store_vector(out + i, lepo::load_vector(x + i));
}

__global__ void bits_kernel(const unsigned* x, unsigned* out) {  // [T] -> [5, T]
  const unsigned i = threadIdx.x;
  out[i] = static_cast<unsigned>(__popc(x[i]));
  out[blockDim.x + i] = static_cast<unsigned>(__clz(static_cast<int>(x[i])));
  out[2 * blockDim.x + i] = static_cast<unsigned>(__ffs(static_cast<int>(x[i])));
  out[3 * blockDim.x + i] = __brev(x[i]);
  out[4 * blockDim.x + i] = __umulhi(x[i], x[0]);
}

__global__ void fast_math_kernel(const float* x, float* out, int count) {  // [T] -> [5, T]
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    out[i] = __expf(x[i]);
    out[count + i] = __logf(x[i]);
    out[2 * count + i] = __log2f(x[i]);
    out[3 * count + i] = rsqrtf(x[i]);
    out[4 * count + i] = __fdividef(1.0f, x[i]);
  }
}

__global__ void sine_kernel(const float* x, float* out) {  // [32] -> [2, 32]
  sincospif(x[threadIdx.x], &out[threadIdx.x], &out[32 + threadIdx.x]);
}

unsigned count(int64_t number) { return static_cast<unsigned>(number); }

}  // namespace features

using namespace features;

LEPO_ENTRY(indices) {
  check(lepo_launch(indices_kernel, dim3(count(numbers[0]), count(numbers[1]), count(numbers[2])),
                    dim3(count(numbers[3]), count(numbers[4]), count(numbers[5])), 0,
                    cudaStream_t{}, arrays.get<int>(0)));
}

LEPO_ENTRY(shuffle) {
  check(lepo_launch(shuffle_kernel, dim3(1), dim3(32), 0, cudaStream_t{}, arrays.get<int>(0),
                    arrays.get<int>(1)));
}

LEPO_ENTRY(votes) {
  check(lepo_launch(votes_kernel, dim3(1), dim3(32), 0, cudaStream_t{}, arrays.get<int>(0),
                    arrays.get<unsigned>(1)));
}

LEPO_ENTRY(block_votes) {
  check(lepo_launch(block_votes_kernel, dim3(1), dim3(count(numbers[0])), 0, cudaStream_t{},
                    arrays.get<int>(0), arrays.get<int>(1)));
}

LEPO_ENTRY(reverse) {
  check(lepo_launch(reverse_kernel, dim3(count(numbers[0])), dim3(count(numbers[1])),
                    sizeof(float) * static_cast<size_t>(numbers[1]), cudaStream_t{},
                    arrays.get<float>(0)));
}

LEPO_ENTRY(early_exit) {
  check(lepo_launch(early_exit_kernel, dim3(1), dim3(128), 0, cudaStream_t{}, arrays.get<int>(0),
                    static_cast<int>(numbers[0])));
}

LEPO_ENTRY(atomics) {
  check(lepo_launch(atomics_kernel, dim3(3), dim3(40), 0, cudaStream_t{}, arrays.get<int>(0),
                    arrays.get<int>(1), arrays.get<unsigned long long>(2), arrays.get<float>(3)));
}

LEPO_ENTRY(last_block) {
  check(lepo_launch(last_block_kernel, dim3(count(numbers[0])), dim3(count(numbers[1])), 0,
                    cudaStream_t{}, arrays.get<float>(0), arrays.get<float>(1),
                    arrays.get<unsigned>(2), arrays.get<float>(3)));
}

LEPO_ENTRY(grid_barrier) {
  check(lepo_launch(grid_barrier_kernel, dim3(count(numbers[0])), dim3(32), 0, cudaStream_t{},
                    arrays.get<int>(0), arrays.get<unsigned>(1), arrays.get<int>(2)));
}

LEPO_ENTRY(convert_bfloat16) {
  check(lepo_launch(convert_kernel<lepo::BFloat16>, dim3(1), dim3(32), 0, cudaStream_t{},
                    arrays.get<lepo::BFloat16>(0), arrays.get<float>(1), arrays.get<float>(2),
                    arrays.get<lepo::BFloat16>(3), static_cast<int>(numbers[0])));
}

LEPO_ENTRY(convert_float16) {
  check(lepo_launch(convert_kernel<lepo::Float16>, dim3(1), dim3(32), 0, cudaStream_t{},
                    arrays.get<lepo::Float16>(0), arrays.get<float>(1), arrays.get<float>(2),
                    arrays.get<lepo::Float16>(3), static_cast<int>(numbers[0])));
}

LEPO_ENTRY(copy_vectors) {
  check(lepo_launch(copy_vectors_kernel<lepo::BFloat16>, dim3(1), dim3(count(numbers[0])), 0,
                    cudaStream_t{}, arrays.get<lepo::BFloat16>(0), arrays.get<lepo::BFloat16>(1)));
  check(lepo_launch(copy_vectors_kernel<float>, dim3(1), dim3(count(numbers[0])), 0, cudaStream_t{},
                    arrays.get<float>(2), arrays.get<float>(3)));
}

LEPO_ENTRY(bits) {
  check(lepo_launch(bits_kernel, dim3(1), dim3(count(numbers[0])), 0, cudaStream_t{},
                    arrays.get<unsigned>(0), arrays.get<unsigned>(1)));
}

LEPO_ENTRY(fast_math) {
  check(lepo_launch(fast_math_kernel, dim3(1), dim3(32), 0, cudaStream_t{}, arrays.get<float>(0),
                    arrays.get<float>(1), static_cast<int>(numbers[0])));
}

LEPO_ENTRY(sine) {
  check(lepo_launch(sine_kernel, dim3(1), dim3(32), 0, cudaStream_t{}, arrays.get<float>(0),
                    arrays.get<float>(1)));
}
