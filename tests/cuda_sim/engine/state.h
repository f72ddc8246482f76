// What the scheduler (engine.cpp) and the primitives that threads call (primitives.cpp) share.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_sim/engine.h"
#include "engine.h"
#include "fiber.h"
#include "sanitizers.h"
#include "shared_memory.h"

namespace lepo_sim {

constexpr unsigned kWarp = 32;

struct Thread {
  ThreadContext context;
  Fiber fiber;
  struct Block* block = nullptr;
  unsigned warp = 0;
  bool done = false;
  // Goes on when *counter is no longer this value.
  const uint64_t* counter = nullptr;
  uint64_t value = 0;
  const char* waits_in = nullptr;
  Site site{"", 0};
  // For the race check: all before the last fence; all that atomics have seen since.
  char fence = 0;
  char seen = 0;
  bool has_fenced = false;
  bool has_seen = false;
};

// Lanes that meet in one warp primitive. Two generations at most are in use: nobody begins the
// next but one before all have read this one.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  WarpOp op = WarpOp::kSyncWarp;
  uint64_t generation = 0;
  Slot slots[2][kWarp] = {};
  char sync[2] = {};
};

struct Warp {
  unsigned exited = 0;
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
  Site site{"", 0};
  BarrierVotes votes[2] = {};
  char sync[2] = {};
};

struct Block {
  Block(size_t dynamic_bytes, unsigned char poison) : shared(dynamic_bytes, poison) {}
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  SharedMemory shared;
  unsigned alive = 0;
};

struct Grid {
  const char* kernel = "";
  dim3 grid;
  dim3 block;
  size_t dynamic_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::vector<uint64_t> waiting;  // numbers of blocks that have not begun, next one last
  std::vector<std::unique_ptr<Block>> resident;
  std::vector<std::unique_ptr<Block>> finished;  // kept for the race check
  std::map<const void*, std::unique_ptr<char>> locations;
};

// The launch that runs, or nullptr.
extern Grid* grid;
// The thread that runs, or that a fault ended.
extern Thread* running;
extern Fiber host;
extern Options options;
extern std::mt19937 dice;
// The thread that ran last did nothing but yield.
extern bool only_yielded;
extern int atomics_since_switch;

std::string block_of(const Thread& thread);
std::string place_of(const Thread& thread);
const char* file_name(const char* path);

void hand_over_to_host(bool finished);
void complete_barrier(Block& block);
// A lane that others wait for will not come.
void check_nobody_waits_for(const Warp& warp, unsigned lane_bit);

}  // namespace lepo_sim
