// What the simulated CUDA names ask of the engine (tests/cuda_sim/engine/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "cuda_sim/types.h"

namespace lepo_sim {

struct ThreadContext {
  uint3 thread;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
  unsigned lane;
};

// The CUDA thread that runs now. Not thread-local: the engine is one host thread.
extern ThreadContext* current;

// Where a barrier or warp primitive stands in the kernel's source.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Ends the launch with a message that names the kernel, block and thread.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
            const std::function<void()>& body);

struct BarrierVotes {
  int any;
  int all;
  int count;
};
BarrierVotes block_barrier(int vote, Site site);

enum class WarpOp { kSyncWarp, kShuffle, kBallot, kMatch, kReduce };

// What one lane hands over: any value of up to 16 bytes.
struct alignas(16) Slot {
  uint64_t word[2];
};
void warp_barrier(unsigned mask, Site site);
// Waits for all lanes of `mask`, then reads the value of lane `source`, or of all 32.
Slot warp_exchange(WarpOp op, unsigned mask, const Slot& mine, int source, Site site);
void warp_gather(WarpOp op, unsigned mask, const Slot& mine, Slot* all, Site site);

// Before an atomic or a fence the shuffled order may run another thread.
void preemption_point();
// An atomic access of `address` by this thread has happened (for the race check).
void atomic_happened(const void* address);
void memory_fence();
void yield_thread();

void* static_shared(const void* key, const char* name, size_t bytes);
void* dynamic_shared();
size_t dynamic_shared_bytes();

// How the approximate functions err; see math.h.
enum class MathMode : int { kExact, kHigh, kLow, kMixed };
extern MathMode math_mode;
extern uint32_t math_seed;

}  // namespace lepo_sim
