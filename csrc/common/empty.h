// How a binding makes its results.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include "common/checks.h"

namespace lepo {

// An uninitialised, contiguous tensor. Straight from the C interface: a call through the dispatcher
// costs several times as much, and a draw makes ten small tensors.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type,
                    int32_t device_index) {
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
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

}  // namespace lepo
