// Runs a grid: every CUDA thread is a fiber, and the scheduler below decides which goes on.
//
// A thread runs until it waits (at a barrier or a warp primitive) or ends; in the shuffled order,
// atomics and fences hand over at random, too. All misuse ends the launch with a SimulationError.
#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "cuda_sim/launch.h"
#include "faults.h"
#include "state.h"

namespace lepo_sim {

ThreadContext* current = nullptr;
MathMode math_mode = MathMode::kExact;
uint32_t math_seed = 0;

Grid* grid = nullptr;
Thread* running = nullptr;
Fiber host;
Options options;
std::mt19937 dice;
bool only_yielded = false;
int atomics_since_switch = 0;

namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksInYZ = 65535;
// Sweeps over all threads in which nothing happened but yielding.
constexpr int kMostIdleSweeps = 2000;

bool on_fiber = false;
std::string failure;
// Every kernel that this process has launched, a name a line.
std::string launched;
char launch_begins, launch_ends;

std::string formatted(const char* format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof(text), format, arguments);
  return text;
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

}  // namespace

std::string block_of(const Thread& thread) {
  const uint3& b = thread.context.block;
  return "block " + triple(b.x, b.y, b.z);
}

std::string place_of(const Thread& thread) {
  const uint3& t = thread.context.thread;
  return block_of(thread) + ", thread " + triple(t.x, t.y, t.z);
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
  on_fiber = false;
  switch_fiber(self->fiber, host, finished);
}

namespace {

std::string message(const std::string& text) {
  std::string all = "kernel " + std::string(grid != nullptr ? grid->kernel : "?");
  if (running != nullptr) all += ", " + place_of(*running);
  return all + ": " + text;
}

bool is_ready(const Thread& thread) {
  return !thread.done && (thread.counter == nullptr || *thread.counter != thread.value);
}

void resume(Thread& thread) {
  thread.counter = nullptr;
  atomics_since_switch = 0;
  running = &thread;
  current = &thread.context;
  on_fiber = true;
  switch_fiber(host, thread.fiber, false);
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
    prepare_fiber(thread.fiber, thread_main);
    if (kRaceCheck) name_fiber(thread.fiber, place_of(thread));
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

void run_threads_to_the_end() {
  const std::optional<Fault> fault = fault_of(run_threads);
  if (!fault) return;
  on_fiber = false;
  if (fault->signal == SIGFPE) fail("integer division by zero");
  fail("access to an invalid or misaligned address, %p", fault->address);
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
  const std::string line = std::string(kernel) + "\n";
  if (("\n" + launched).find("\n" + line) == std::string::npos) launched += line;
  try {
    check_launch(blocks, threads, dynamic_bytes);
    g.waiting = block_order(uint64_t{blocks.x} * blocks.y * blocks.z);
    adopt_host_thread(host);
    release(&launch_begins);
    run_threads_to_the_end();
  } catch (...) {
    clean_up(g);
    throw;
  }
  clean_up(g);
}

}  // namespace lepo_sim

extern "C" const char* lepo_sim_launched() { return lepo_sim::launched.c_str(); }

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
