// What every binding of the CPU library checks of its tensors.
#pragma once

#include "common/checks.h"

namespace lepo {

// A contiguous CPU tensor of this dtype and these sizes.
inline void check_dense(const char* name, const Tensor& x, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor");
  check_layout(name, x, dtype, sizes);
}

}  // namespace lepo
