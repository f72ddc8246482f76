// The simulated library's name in torch: the real one's, whose place it takes. It says nothing of its
// build, since it is nobody's to use outside of tests.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lepo_kernels_cuda, m) { static_cast<void>(m); }
