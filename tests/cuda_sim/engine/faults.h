// Accesses outside of all memory, and divisions by zero: they end the launch, not the process.
#pragma once

#include <optional>

namespace lepo_sim {

struct Fault {
  int signal;
  const void* address;
};

// Calls `run`; the fault that ended it, if one did. Sanitizers report faults themselves, with more
// detail: then no fault comes back.
std::optional<Fault> fault_of(void (*run)());

}  // namespace lepo_sim
