#include "faults.h"

#include <setjmp.h>
#include <signal.h>

namespace lepo_sim {
namespace {

sigjmp_buf after_fault;
Fault fault;

void on_fault(int signal, siginfo_t* info, void*) {
  fault = {signal, info->si_addr};
  siglongjmp(after_fault, 1);
}

constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE};

#if defined(__SANITIZE_ADDRESS__) || defined(LEPO_SIM_TSAN)
constexpr bool kCatchFaults = false;
#else
constexpr bool kCatchFaults = true;
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

}  // namespace

std::optional<Fault> fault_of(void (*run)()) {
  FaultHandlers handlers;
  if (sigsetjmp(after_fault, 1) != 0) return fault;
  run();
  return std::nullopt;
}

}  // namespace lepo_sim
