// How a binding makes its results, and names the element types of its inputs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include "cpu/bindings/checks.h"

namespace lepo {

// An uninitialised, contiguous CPU tensor. Straight from the C interface: a call through the
// dispatcher costs several times as much, and a draw makes ten small tensors.
inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  constexpr int kMostDimensions = 4;
  int64_t strides[kMostDimensions];
  STD_TORCH_CHECK(sizes.size() <= kMostDimensions, "too many dimensions");
  int64_t stride = 1;
  for (size_t axis = sizes.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= sizes.begin()[axis] > 0 ? sizes.begin()[axis] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
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
