// Kernels with one planted bug each, which a check of the simulator must find.
#include "cuda/element.cuh"
#include "cuda_sim/entry.h"

using lepo::kAllLanes;
using lepo_test::check;

// Not anonymous: messages find the names of kernels among the library's symbols.
namespace planted {

// --- Races --------------------------------------------------------------------------------------

__global__ void race_between_warps(float* out) {
  LEPO_SHARED(float, values, 64);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void race_between_blocks(float* out) {
  if (threadIdx.x == 0) out[0] += 1.0f;
}

__global__ void missing_syncwarp(float* out) {
  LEPO_SHARED(float, values, 32);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = values[31 - threadIdx.x];
}

__global__ void shuffle_is_no_fence(float* out) {
  LEPO_SHARED(float, values, 32);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  const float other = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  out[threadIdx.x] = values[31 - threadIdx.x] + other;
}

// An atomic orders nothing by itself: the ticket needs a fence on either side.
template <bool kBefore, bool kAfter>
__global__ void ticket_without_fence(float* parts, unsigned* ticket) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = 1.0f;
  if (kBefore) __threadfence();
  const bool last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  if (kAfter) __threadfence();
  if (last) parts[0] = parts[0] + parts[gridDim.x - 1];
}

// The fence does not cover what is written after it.
__global__ void written_after_the_fence(float* parts, unsigned* ticket) {
  if (threadIdx.x != 0) return;
  __threadfence();
  parts[blockIdx.x] = 1.0f;
  const bool last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __threadfence();
  if (last) parts[0] = parts[0] + parts[gridDim.x - 1];
}

// --- Memory -------------------------------------------------------------------------------------

__global__ void shared_overrun_by_index(float* out) {
  LEPO_SHARED(float, values, 31);
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[0];
}

__global__ void shared_overrun_by_pointer(float* out) {
  LEPO_SHARED(float, values, 32);
  float* behind = values + 1;
  behind[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[1];
}

__global__ void dynamic_overrun(float* out) {
  LEPO_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = 1.0f;
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void global_overrun(float* out) { out[threadIdx.x + 1] = 1.0f; }

__global__ void write_just_behind(float* out, int count) {
  if (threadIdx.x == 0) out[count] = 1.0f;
}

__global__ void global_read_before(const float* x, float* out) {
  out[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 1];
}

__global__ void far_away(float* out) { out[(1ull << 40) + threadIdx.x] = 1.0f; }

__global__ void uninitialised_shared(float* out) {
  LEPO_SHARED(float, values, 32);
  if (threadIdx.x < 31) values[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned_vector(const float* x, float* out) {
  out[threadIdx.x] = lepo::load_vector(x + 1).element[0];
}

__global__ void misaligned_pointer(const float* x, float* out) {
  const float4* vectors = reinterpret_cast<const float4*>(x + 1);
  out[threadIdx.x] = vectors[threadIdx.x % 4].y;
}

__global__ void misaligned_atomic(float* out) {
  atomicAdd(reinterpret_cast<unsigned long long*>(out + 1), 1ull);
}

// nvcc refuses this one itself.
#if defined(LEPO_CUDA_SIM)
__global__ void too_much_shared(float* out) {
  LEPO_SHARED(float, first, 8 * 1024);
  LEPO_SHARED(float, second, 8 * 1024);
  first[threadIdx.x] = second[threadIdx.x] = out[threadIdx.x];
  out[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}
#endif

// --- Synchronisation ----------------------------------------------------------------------------

__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  }
}

__global__ void barrier_against_shuffle(float* out) {
  if (threadIdx.x < 8) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
  }
}

__global__ void shuffle_with_exited_lanes(float* out) {
  if (threadIdx.x >= 20) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}

__global__ void exit_while_awaited(float* out) {
  if (threadIdx.x == 31) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}

__global__ void lane_outside_its_mask(float* out) {
  out[threadIdx.x] = __shfl_sync(0x0000FFFFu, 1.0f, 0);
}

__global__ void different_primitives(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
  } else {
    out[threadIdx.x] = static_cast<float>(__ballot_sync(kAllLanes, 1));
  }
}

__global__ void reads_outside_the_mask(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_down_sync(0x0000FFFFu, 1.0f, 1);
  }
}

__global__ void wait_for_later_block(unsigned* flag) {
  if (blockIdx.x == 0) {
    while (atomicAdd(flag, 0u) == 0u) __nanosleep(20);
  } else {
    atomicAdd(flag, 1u);
  }
}

// --- Numerics -----------------------------------------------------------------------------------

// With an accurate logarithm the inner one is never above 0.
__global__ void fast_log_of_log(const float* x, float* out) {
  out[threadIdx.x] = -__logf(-__logf(x[threadIdx.x]));
}

}  // namespace planted

using namespace planted;

#define LEPO_PLANTED(kernel, blocks, threads, shared, ...)                                        \
  LEPO_ENTRY(run_##kernel) {                                                                      \
    check(lepo_launch(kernel, dim3(blocks), dim3(threads), shared, cudaStream_t{}, __VA_ARGS__)); \
  }

LEPO_PLANTED(race_between_warps, 1, 64, 0, arrays.get<float>(0))
LEPO_PLANTED(race_between_blocks, 2, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(missing_syncwarp, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(shuffle_is_no_fence, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(written_after_the_fence, 3, 32, 0, arrays.get<float>(0), arrays.get<unsigned>(1))
LEPO_PLANTED(shared_overrun_by_index, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(shared_overrun_by_pointer, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(dynamic_overrun, 1, 32, 31 * sizeof(float), arrays.get<float>(0))
LEPO_PLANTED(global_overrun, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(write_just_behind, 1, 32, 0, arrays.get<float>(0), 31)
LEPO_PLANTED(global_read_before, 1, 32, 0, arrays.get<float>(0), arrays.get<float>(1))
LEPO_PLANTED(far_away, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(uninitialised_shared, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(misaligned_vector, 1, 32, 0, arrays.get<float>(0), arrays.get<float>(1))
LEPO_PLANTED(misaligned_pointer, 1, 32, 0, arrays.get<float>(0), arrays.get<float>(1))
LEPO_PLANTED(misaligned_atomic, 1, 32, 0, arrays.get<float>(0))
#if defined(LEPO_CUDA_SIM)
LEPO_PLANTED(too_much_shared, 1, 32, 0, arrays.get<float>(0))
#endif
LEPO_PLANTED(divergent_barrier, 1, 64, 0, arrays.get<float>(0))
LEPO_PLANTED(barrier_against_shuffle, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(shuffle_with_exited_lanes, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(exit_while_awaited, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(lane_outside_its_mask, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(different_primitives, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(reads_outside_the_mask, 1, 32, 0, arrays.get<float>(0))
LEPO_PLANTED(wait_for_later_block, 2, 32, 0, arrays.get<unsigned>(0))
LEPO_PLANTED(fast_log_of_log, 1, 32, 0, arrays.get<float>(0), arrays.get<float>(1))

// numbers: whether there is a fence before, and after, the atomic
LEPO_ENTRY(run_ticket) {
  const auto kernel =
      numbers[0]
          ? (numbers[1] ? ticket_without_fence<true, true> : ticket_without_fence<true, false>)
          : ticket_without_fence<false, true>;
  check(lepo_launch(kernel, dim3(3), dim3(32), 0, cudaStream_t{}, arrays.get<float>(0),
                    arrays.get<unsigned>(1)));
}

// numbers: blocks, threads, shared bytes
LEPO_ENTRY(run_launch) {
  check(lepo_launch(race_between_blocks, dim3(static_cast<unsigned>(numbers[0])),
                    dim3(static_cast<unsigned>(numbers[1])), static_cast<size_t>(numbers[2]),
                    cudaStream_t{}, arrays.get<float>(0)));
}
