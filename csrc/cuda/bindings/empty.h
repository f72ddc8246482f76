// How a binding of the CUDA library makes its results and its workspace.
#pragma once

#include "common/empty.h"

namespace lepo {

// An uninitialised, contiguous tensor on this CUDA device.
inline Tensor empty_cuda(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device) {
#if defined(LEPO_CUDA_SIM)
  return empty(sizes, dtype, aoti_torch_device_type_cpu(), device);
#else
  return empty(sizes, dtype, aoti_torch_device_type_cuda(), device);
#endif
}

}  // namespace lepo
