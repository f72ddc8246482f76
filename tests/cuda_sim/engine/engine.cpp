// Runs a grid: every CUDA thread is a fiber, and the scheduler below decides which goes on.
//
// A thread runs until it waits (at a barrier or a warp primitive) or ends; in the shuffled order,
// atomics and fences hand over at random, too. All misuse ends the launch with a SimulationError.
#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_sim/engine.h"
#include "cuda_sim/launch.h"
#include "fiber.h"
#include "sanitizers.h"
#include "shared_memory.h"

namespace lepo_sim {

ThreadContext* current = nullptr;
MathMode math_mode = MathMode::kExact;
uint32_t math_seed = 0;

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksInYZ = 65535;
// Sweeps over all threads in which nothing happened but yielding.
constexpr int kMostIdleSweeps = 2000;
constexpr int kMostAtomicsInARow = 1 << 24;

const char* const kWarpOpNames[] = {"__syncwarp", "__shfl_sync", "__ballot_sync", "__match_sync",
                                    "__reduce_sync"};

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

Options options;
std::mt19937 dice;

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

Grid* grid = nullptr;
Thread* running = nullptr;
Fiber host;
std::string failure;
bool only_yielded = false;
int atomics_since_switch = 0;
char launch_begins, launch_ends;

std::string formatted(const char* format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof(text), format, arguments);
  return text;
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

std::string block_of(const Thread& thread) {
  const uint3& b = thread.context.block;
  return "block " + triple(b.x, b.y, b.z);
}

std::string place_of(const Thread& thread) {
  const uint3& t = thread.context.thread;
  return block_of(thread) + ", thread " + triple(t.x, t.y, t.z);
}

std::string message(const std::string& text) {
  std::string all = "kernel " + std::string(grid != nullptr ? grid->kernel : "?");
  if (running != nullptr) all += ", " + place_of(*running);
  return all + ": " + text;
}

const char* file_name(const char* path) {
  const char* name = path;
  for (; *path != '\0'; ++path) {
    if (*path == '/') name = path + 1;
  }
  return name;
}

void hand_over_to_host(bool finished) {
  Thread* self = running;
  running = nullptr;
  current = nullptr;
  switch_fiber(self->fiber, host, finished);
}

void wait_while(const uint64_t& counter, uint64_t value, const char* where, Site site) {
  running->counter = &counter;
  running->value = value;
  running->waits_in = where;
  running->site = site;
  hand_over_to_host(false);
}

bool is_ready(const Thread& thread) {
  return !thread.done && (thread.counter == nullptr || *thread.counter != thread.value);
}

void resume(Thread& thread) {
  thread.counter = nullptr;
  atomics_since_switch = 0;
  running = &thread;
  current = &thread.context;
  switch_fiber(host, thread.fiber, false);
}

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

void thread_main() {
  fiber_started(host);
  acquire(&launch_begins);
  (*grid->body)();
  release(&launch_ends);
  Block& block = *running->block;
  const unsigned lane_bit = 1u << running->context.lane;
  check_nobody_waits_for(block.warps[running->warp], lane_bit);
  block.warps[running->warp].exited |= lane_bit;
  running->done = true;
  --block.alive;
  // As on the GPU, a thread that has ended does not hold up the barrier.
  if (block.alive != 0 && block.barrier.arrived == block.alive) complete_barrier(block);
  hand_over_to_host(true);
  abort();
}

std::unique_ptr<Block> begin_block(uint64_t number) {
  auto block = std::make_unique<Block>(grid->dynamic_bytes, options.poison);
  const dim3& size = grid->block;
  const unsigned count = size.x * size.y * size.z;
  block->threads.resize(count);
  block->warps.resize((count + kWarp - 1) / kWarp);
  if (count % kWarp != 0) block->warps.back().exited = ~0u << (count % kWarp);
  block->alive = count;
  const uint3 index = {static_cast<unsigned>(number % grid->grid.x),
                       static_cast<unsigned>(number / grid->grid.x % grid->grid.y),
                       static_cast<unsigned>(number / grid->grid.x / grid->grid.y)};
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block->threads[i];
    const uint3 place = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    thread.context = {place, index, size, grid->grid, i % kWarp};
    thread.block = block.get();
    thread.warp = i / kWarp;
    take_stack(thread.fiber);
    prepare_fiber(thread.fiber, thread_main, place_of(thread));
  }
  release(&launch_begins);
  return block;
}

void destroy_threads(Block& block) {
  for (Thread& thread : block.threads) {
    destroy_fiber(thread.fiber);
    give_back_stack(thread.fiber);
  }
}

// For the race check a block stays until the end of the launch: a later thread in the place of an
// ended one would be taken for the same thread, and its accesses for ordered.
void end_block(std::unique_ptr<Block> block) {
  if (kRaceCheck) {
    grid->finished.push_back(std::move(block));
  } else {
    destroy_threads(*block);
  }
}

// The threads of all resident blocks, in the order of this sweep.
std::vector<Thread*> sweep_order() {
  std::vector<Thread*> order;
  for (const auto& block : grid->resident) {
    for (Thread& thread : block->threads) order.push_back(&thread);
  }
  if (options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (options.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), dice);
  return order;
}

std::string deadlock_report() {
  std::string report = "deadlock; these threads wait:";
  constexpr int kMostLines = 8;
  int lines = 0;
  for (const auto& block : grid->resident) {
    for (const Thread& thread : block->threads) {
      if (thread.done || ++lines > kMostLines) continue;
      report += "\n  " + place_of(thread) + " in " + thread.waits_in + " at " +
                file_name(thread.site.file) + ":" + std::to_string(thread.site.line);
    }
  }
  if (lines > kMostLines) report += "\n  and " + std::to_string(lines - kMostLines) + " more";
  return report;
}

void end_finished_blocks() {
  for (auto& block : grid->resident) {
    if (block->alive != 0) continue;
    if (const char* name = block->shared.overrun()) {
      fail("%s wrote beyond the shared array %s", block_of(block->threads[0]).c_str(), name);
    }
    end_block(std::move(block));
  }
  auto& resident = grid->resident;
  resident.erase(std::remove(resident.begin(), resident.end(), nullptr), resident.end());
}

void begin_waiting_blocks() {
  const size_t most = std::max(1, options.resident_blocks);
  while (grid->resident.size() < most && !grid->waiting.empty()) {
    grid->resident.push_back(begin_block(grid->waiting.back()));
    grid->waiting.pop_back();
  }
}

void run_threads() {
  int idle_sweeps = 0;
  for (begin_waiting_blocks(); !grid->resident.empty(); begin_waiting_blocks()) {
    bool moved = false;
    bool worked = false;
    for (Thread* thread : sweep_order()) {
      if (!is_ready(*thread)) continue;
      only_yielded = false;
      resume(*thread);
      if (!failure.empty()) throw SimulationError(failure);
      moved = true;
      worked = worked || !only_yielded;
    }
    if (!moved) fail("%s", deadlock_report().c_str());
    idle_sweeps = worked ? 0 : idle_sweeps + 1;
    if (idle_sweeps > kMostIdleSweeps) {
      fail(
          "livelock: threads poll for something that no running block does; %zu blocks have not "
          "begun",
          grid->waiting.size());
    }
    end_finished_blocks();
  }
}

std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> order(count);
  // The next one to begin is the last of the vector.
  for (uint64_t i = 0; i < count; ++i) order[i] = count - 1 - i;
  if (options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (options.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), dice);
  return order;
}

// --- Faults: an access outside of all memory ends the launch, not the process --------------------

sigjmp_buf after_fault;
const void* fault_address;
int fault_signal;

void on_fault(int signal, siginfo_t* info, void*) {
  fault_signal = signal;
  fault_address = info->si_addr;
  siglongjmp(after_fault, 1);
}

constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE};

// Sanitizers report faults themselves, with more detail.
constexpr bool kCatchFaults =
#if defined(__SANITIZE_ADDRESS__) || defined(LEPO_SIM_TSAN)
    false;
#else
    true;
#endif

class FaultHandlers {
 public:
  FaultHandlers() {
    if (!kCatchFaults) return;
    // A stack of its own: the fiber's may be what overflowed.
    static char stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof(stack);
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(kFaults[i], &action, &old_actions_[i]);
  }
  ~FaultHandlers() {
    if (!kCatchFaults) return;
    for (int i = 0; i < 3; ++i) sigaction(kFaults[i], &old_actions_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  stack_t old_stack_;
  struct sigaction old_actions_[3];
};

void run_threads_catching_faults() {
  FaultHandlers handlers;
  if (sigsetjmp(after_fault, 1) == 0) {
    run_threads();
  } else if (fault_signal == SIGFPE) {
    fail("integer division by zero");
  } else {
    fail("access to an invalid or misaligned address, %p", fault_address);
  }
}

void clean_up(Grid& g) {
  acquire(&launch_ends);
  for (auto* blocks : {&g.resident, &g.finished}) {
    for (auto& block : *blocks) {
      if (block != nullptr) destroy_threads(*block);
    }
    blocks->clear();
  }
  release_stacks();
  grid = nullptr;
  running = nullptr;
  current = nullptr;
  failure.clear();
}

void check_launch(dim3 blocks, dim3 threads, size_t dynamic_bytes) {
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kMostThreads || threads.z > 64) {
    fail("%llu threads per block: expected 1 to 1024", static_cast<unsigned long long>(count));
  }
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) fail("an empty grid");
  if (blocks.x > 0x7FFFFFFFu || blocks.y > kMostBlocksInYZ || blocks.z > kMostBlocksInYZ) {
    fail("a grid beyond CUDA's limits");
  }
  if (dynamic_bytes > kMostSharedBytes) fail("%zu bytes of shared memory", dynamic_bytes);
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = message(formatted(format, arguments));
  va_end(arguments);
  const bool on_fiber = running != nullptr && fault_address == nullptr && fault_signal == 0;
  if (!on_fiber) throw SimulationError(text);
  failure = text;
  hand_over_to_host(true);
  abort();
}

const char* kernel_name(const void* function) {
  static std::string name;
  Dl_info info;
  if (dladdr(function, &info) == 0 || info.dli_sname == nullptr) return "?";
  int status = 0;
  char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  name = status == 0 ? demangled : info.dli_sname;
  free(demangled);
  // Without parameters, but with template arguments, which may hold parentheses themselves.
  if (!name.empty() && name.back() == ')') {
    int depth = 0;
    size_t at = name.size();
    do {
      --at;
      depth += name[at] == ')' ? 1 : name[at] == '(' ? -1 : 0;
    } while (depth != 0 && at > 0);
    name.resize(at);
  }
  return name.c_str();
}

void launch(const char* kernel, dim3 blocks, dim3 threads, size_t dynamic_bytes,
            const std::function<void()>& body) {
  Grid g;
  g.kernel = kernel;
  g.grid = blocks;
  g.block = threads;
  g.dynamic_bytes = dynamic_bytes;
  g.body = &body;
  grid = &g;
  fault_signal = 0;
  fault_address = nullptr;
  try {
    check_launch(blocks, threads, dynamic_bytes);
    g.waiting = block_order(uint64_t{blocks.x} * blocks.y * blocks.z);
    adopt_host_thread(host);
    release(&launch_begins);
    run_threads_catching_faults();
  } catch (...) {
    clean_up(g);
    throw;
  }
  clean_up(g);
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

extern "C" const char* lepo_sim_run(lepo_sim::Entry entry, void* const* arrays,
                                    const double* numbers, const lepo_sim::Options* options) {
  static std::string error;
  lepo_sim::options = *options;
  lepo_sim::dice.seed(options->seed);
  lepo_sim::math_mode = static_cast<lepo_sim::MathMode>(options->math_mode);
  lepo_sim::math_seed = options->seed;
  try {
    entry(arrays, numbers);
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
  return nullptr;
}
