// What CUDA threads call: barriers, warp primitives, fences, shared memory.
#include "state.h"

namespace lepo_sim {
namespace {

constexpr int kMostAtomicsInARow = 1 << 24;

const char* const kWarpOpNames[] = {"__syncwarp", "__shfl_sync", "__ballot_sync", "__match_sync",
                                    "__reduce_sync"};

void wait_while(const uint64_t& counter, uint64_t value, const char* where, Site site) {
  running->counter = &counter;
  running->value = value;
  running->waits_in = where;
  running->site = site;
  hand_over_to_host(false);
}

}  // namespace

void complete_barrier(Block& block) {
  block.barrier.arrived = 0;
  ++block.barrier.generation;
}

// A lane that others wait for will not come.
void check_nobody_waits_for(const Warp& warp, unsigned lane_bit) {
  for (const auto& meeting : warp.meetings) {
    if (meeting->arrived != 0 && (meeting->mask & lane_bit) != 0) {
      fail("exits while lanes %08x wait for it in %s with mask %08x", meeting->arrived,
           kWarpOpNames[static_cast<int>(meeting->op)], meeting->mask);
    }
  }
}

BarrierVotes block_barrier(int vote, Site site) {
  Barrier& barrier = running->block->barrier;
  const uint64_t generation = barrier.generation;
  BarrierVotes& votes = barrier.votes[generation & 1];
  if (barrier.arrived == 0) {
    barrier.site = site;
    votes = {0, 1, 0};
  } else if (barrier.site.line != site.line || barrier.site.file != site.file) {
    fail("barrier divergence: this thread is at the block barrier at %s:%d, others at %s:%d",
         file_name(site.file), site.line, file_name(barrier.site.file), barrier.site.line);
  }
  votes.any |= vote != 0;
  votes.all &= vote != 0;
  votes.count += vote != 0;
  char* sync = &barrier.sync[generation & 1];
  release(sync);
  if (++barrier.arrived == running->block->alive) {
    complete_barrier(*running->block);
    // Whoever comes last does not get a head start.
    running->counter = nullptr;
    hand_over_to_host(false);
  } else {
    wait_while(barrier.generation, generation, "__syncthreads", site);
  }
  acquire(sync);
  return votes;
}

namespace {

Meeting& meeting_of(Warp& warp, unsigned mask) {
  for (auto& meeting : warp.meetings) {
    if (meeting->mask == mask) return *meeting;
  }
  warp.meetings.push_back(std::make_unique<Meeting>());
  warp.meetings.back()->mask = mask;
  return *warp.meetings.back();
}

void check_mask(const Warp& warp, WarpOp op, unsigned mask) {
  const char* name = kWarpOpNames[static_cast<int>(op)];
  if (((mask >> running->context.lane) & 1u) == 0) {
    fail("%s: the calling lane is not in its mask %08x", name, mask);
  }
  if ((mask & warp.exited) != 0) {
    fail("%s: mask %08x names lanes %08x, which have exited or never were", name, mask,
         mask & warp.exited);
  }
}

// Hands over `mine` and waits for all lanes of the mask; what they handed over.
const Slot* meet(WarpOp op, unsigned mask, const Slot* mine, Site site) {
  Warp& warp = running->block->warps[running->warp];
  check_mask(warp, op, mask);
  Meeting& meeting = meeting_of(warp, mask);
  if (meeting.arrived == 0) meeting.op = op;
  if (meeting.op != op) {
    fail("%s meets %s in one mask %08x", kWarpOpNames[static_cast<int>(op)],
         kWarpOpNames[static_cast<int>(meeting.op)], mask);
  }
  const uint64_t generation = meeting.generation;
  Slot* slots = meeting.slots[generation & 1];
  if (mine != nullptr) {
    slots[running->context.lane].word[0] = mine->word[0];
    slots[running->context.lane].word[1] = mine->word[1];
  }
  char* sync = &meeting.sync[generation & 1];
  if (op == WarpOp::kSyncWarp) release(sync);
  meeting.arrived |= 1u << running->context.lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    wait_while(meeting.generation, generation, kWarpOpNames[static_cast<int>(op)], site);
  }
  if (op == WarpOp::kSyncWarp) acquire(sync);
  return slots;
}

}  // namespace

void warp_barrier(unsigned mask, Site site) { meet(WarpOp::kSyncWarp, mask, nullptr, site); }

Slot warp_exchange(WarpOp op, unsigned mask, const Slot& mine, int source, Site site) {
  const Slot* slots = meet(op, mask, &mine, site);
  // CUDA leaves the value of a lane outside the mask undefined.
  constexpr Slot kUndefined = {{0xA5A5A5A5A5A5A5A5u, 0xA5A5A5A5A5A5A5A5u}};
  return ((mask >> source) & 1u) != 0 ? slots[source] : kUndefined;
}

void warp_gather(WarpOp op, unsigned mask, const Slot& mine, Slot* all, Site site) {
  const Slot* slots = meet(op, mask, &mine, site);
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    all[lane].word[0] = slots[lane].word[0];
    all[lane].word[1] = slots[lane].word[1];
  }
}

void preemption_point() {
  if (++atomics_since_switch > kMostAtomicsInARow) {
    fail("polls without __nanosleep: no other thread can run");
  }
  if (options.order != Order::kShuffled || dice() % 4 != 0) return;
  yield_thread();
}

void yield_thread() {
  running->counter = nullptr;
  only_yielded = true;
  hand_over_to_host(false);
}

void memory_fence() {
  release(&running->fence);
  running->has_fenced = true;
  if (running->has_seen) acquire(&running->seen);
}

// CUDA's rule (as C++'s for relaxed atomics with fences): what comes before a fence, before an
// atomic, is seen after a fence that follows an atomic which read that one's value. An own
// TSan fiber carries the clocks over, so that nothing but what was fenced becomes ordered. It is
// made by the host, since a new fiber knows all that its maker knows.
void atomic_happened([[maybe_unused]] const void* address) {
#if defined(LEPO_SIM_TSAN)
  Thread& thread = *running;
  const auto found = grid->locations.find(address);
  if (found == grid->locations.end() && !thread.has_fenced) return;
  std::unique_ptr<char>& location = grid->locations[address];
  if (location == nullptr) location = std::make_unique<char>();
  constexpr unsigned kNoSynchronization = 1;
  __tsan_switch_to_fiber(host.tsan, kNoSynchronization);
  void* carrier = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(carrier, kNoSynchronization);
  acquire(location.get());
  release(&thread.seen);
  thread.has_seen = true;
  if (thread.has_fenced) {
    acquire(&thread.fence);
    release(location.get());
  }
  __tsan_switch_to_fiber(thread.fiber.tsan, kNoSynchronization);
  __tsan_destroy_fiber(carrier);
#endif
}

void* static_shared(const void* key, const char* name, size_t bytes) {
  void* array = running->block->shared.static_array(key, name, bytes);
  if (array == nullptr) {
    fail("shared array %s of %zu bytes: more than %zu bytes of fixed size in all", name, bytes,
         kMostStaticBytes);
  }
  return array;
}

void* dynamic_shared() { return running->block->shared.dynamic_array(); }

size_t dynamic_shared_bytes() { return running->block->shared.dynamic_bytes(); }

}  // namespace lepo_sim
