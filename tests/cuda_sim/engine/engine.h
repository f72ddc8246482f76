// How a test runs an entry of a module of kernels.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace lepo_sim {

struct SimulationError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In which order the threads of a block, and the blocks, go on.
enum class Order : int32_t { kForward, kReverse, kShuffled };

// The same layout is in simulator.py.
struct Options {
  Order order = Order::kForward;
  uint32_t seed = 0;
  int32_t resident_blocks = 1;
  int32_t math_mode = 0;
  uint8_t poison = 0xFF;
};

using Entry = void (*)(void* const* arrays, const double* numbers);

}  // namespace lepo_sim

// The message of the error that ended the run, or nullptr. The text lives until the next run.
extern "C" const char* lepo_sim_run(lepo_sim::Entry entry, void* const* arrays,
                                    const double* numbers, const lepo_sim::Options* options);
