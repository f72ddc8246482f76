// lepo_launch: the kernel's arguments are copied once, as CUDA copies them.
#pragma once

#include <tuple>
#include <utility>

#include "cuda_sim/engine.h"

namespace lepo_sim {

// The name of a kernel, for messages, from the symbols of its library.
const char* kernel_name(const void* function);

}  // namespace lepo_sim

template <typename... Parameters, typename... Arguments>
[[nodiscard]] inline cudaError_t lepo_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                             size_t shared_bytes, cudaStream_t,
                                             Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  lepo_sim::launch(lepo_sim::kernel_name(reinterpret_cast<const void*>(kernel)), grid, block,
                   shared_bytes, [&] { std::apply(kernel, copies); });
  return cudaSuccess;
}
