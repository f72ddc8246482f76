// A fiber: a stack of its own that runs until it hands over to another.
#pragma once

#include <cstddef>
#include <string>

#if !defined(__x86_64__) || defined(LEPO_SIM_UCONTEXT)
#define LEPO_SIM_USE_UCONTEXT
#include <ucontext.h>
#endif

namespace lepo_sim {

struct Fiber {
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;  // ASan's
  void* tsan = nullptr;
#if defined(LEPO_SIM_USE_UCONTEXT)
  ucontext_t context;
#endif
};

// Takes what the sanitizers know of the running host thread.
void adopt_host_thread(Fiber& host);

// Prepares `fiber` to run `entry`, which must not return.
void prepare_fiber(Fiber& fiber, void (*entry)());
// What the race check calls it.
void name_fiber(Fiber& fiber, const std::string& name);
// The first call in `entry`; `host` is the fiber that switched to it.
void fiber_started(Fiber& host);
void switch_fiber(Fiber& from, Fiber& to, bool from_is_finished);
void destroy_fiber(Fiber& fiber);

// Stacks are used again from launch to launch; for the race check within no launch, where a new
// thread on an old stack would look like a race.
void take_stack(Fiber& fiber);
void give_back_stack(Fiber& fiber);
void release_stacks();

}  // namespace lepo_sim
