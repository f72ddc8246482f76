// The CUDA library's own name in torch, and what it says about itself. The ops of a family are
// declared and implemented in the family's own file.
#include <torch/csrc/stable/library.h>

#include <string>

#include "build_info.h"

namespace {

std::string build_info() { return LEPO_BUILD_INFO; }

}  // namespace

STABLE_TORCH_LIBRARY(lepo_kernels_cuda, m) { m.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
