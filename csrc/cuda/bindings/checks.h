// What every binding of the CUDA library checks of its tensors.
#pragma once

#include "common/checks.h"

namespace lepo {

inline void check_device(const char* name, const Tensor& x, int32_t device) {
#if defined(LEPO_CUDA_SIM)
  STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor");
#else
  STD_TORCH_CHECK(x.is_cuda(), name, ": expected a CUDA tensor");
#endif
  STD_TORCH_CHECK(x.get_device_index() == device, name, ": on another device than the others");
}

// A contiguous tensor of this dtype and these sizes, on this CUDA device.
inline void check_dense(const char* name, const Tensor& x, int32_t device, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  check_device(name, x, device);
  check_layout(name, x, dtype, sizes);
}

}  // namespace lepo
