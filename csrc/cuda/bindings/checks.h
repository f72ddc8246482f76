// What every binding of the CUDA library checks of its tensors.
#pragma once

#include "common/checks.h"

namespace lepo {

// A contiguous tensor of this dtype and these sizes, on this CUDA device.
inline void check_dense(const char* name, const Tensor& x, int32_t device, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(x.is_cuda(), name, ": expected a CUDA tensor");
  STD_TORCH_CHECK(x.get_device_index() == device, name, ": on another device than the others");
  check_layout(name, x, dtype, sizes);
}

}  // namespace lepo
