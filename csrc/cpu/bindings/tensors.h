// How a binding makes its results, and names the element types of its inputs.
#pragma once

#include "common/empty.h"
#include "cpu/bindings/checks.h"

namespace lepo {

// An uninitialised, contiguous CPU tensor.
inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes, dtype, aoti_torch_device_type_cpu(), 0);
}

// The place of a tensor's element type in a kernel table: float32, bfloat16, float16.
inline int element_index(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return 0;
    case ScalarType::BFloat16:
      return 1;
    case ScalarType::Half:
      return 2;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, bfloat16 or float16");
  }
}

}  // namespace lepo
