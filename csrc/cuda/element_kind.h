// The element types of tensors, as a launch is told of them.
#pragma once

namespace lepo {
namespace cuda {

enum class ElementKind { kFloat32, kBFloat16, kFloat16 };

}  // namespace cuda
}  // namespace lepo
