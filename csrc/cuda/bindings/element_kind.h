// The element type of a tensor, for a launch.
#pragma once

#include "common/checks.h"
#include "cuda/element_kind.h"

namespace lepo {

inline cuda::ElementKind element_kind(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return cuda::ElementKind::kFloat32;
    case ScalarType::BFloat16:
      return cuda::ElementKind::kBFloat16;
    case ScalarType::Half:
      return cuda::ElementKind::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, bfloat16 or float16");
  }
}

}  // namespace lepo
