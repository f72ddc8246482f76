// The CPU library's own name in torch, and what it says about itself. The ops of a family are
// declared and implemented in the family's own file.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/capability.h"

namespace {

std::string capability() { return lepo::capability_name(lepo::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY(lepo_kernels_cpu, m) { m.def("capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&capability));
}
