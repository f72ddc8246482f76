// The CPU library's own name in torch, and what it says about itself. The ops of a family are
// declared and implemented in the family's own file.
#include <torch/csrc/stable/library.h>

#include <string>

#include "build_info.h"
#include "cpu/capability.h"

namespace {

std::string build_info() { return LEPO_BUILD_INFO; }

std::string best_capability() { return lepo::capability_name(lepo::best_capability()); }

std::string capability() { return lepo::capability_name(lepo::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY(lepo_kernels_cpu, m) {
  m.def("build_info() -> str");
  m.def("best_capability() -> str");
  m.def("capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("best_capability", TORCH_BOX(&best_capability));
  m.impl("capability", TORCH_BOX(&capability));
}
