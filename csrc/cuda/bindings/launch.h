// Where a binding registers its ops and launches its kernels: the tensors' device, and torch's
// current stream on it.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#if defined(LEPO_CUDA_SIM)

// The simulated library takes CPU tensors (see tests/cuda_sim/README.md).
#define LEPO_CUDA_KEY CPU

namespace lepo {

class CudaDevice {
 public:
  explicit CudaDevice(int32_t) {}
  cudaStream_t stream() const { return nullptr; }
};

}  // namespace lepo

#else

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#define LEPO_CUDA_KEY CUDA

// Only a torch with CUDA has this function. As a weak symbol it does not keep the library from
// loading under a CPU-only torch, where its ops can be registered and inspected.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace lepo {

// Makes a device the current one while this lives.
class CudaDevice {
 public:
  explicit CudaDevice(int32_t device) : device_(device), guard_(device) {}

  cudaStream_t stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "lepo_kernels: this torch is built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace lepo

#endif

namespace lepo {

// Sees only what the launch itself says; a fault inside a kernel surfaces in a later call.
inline void check_launch(const char* op, cudaError_t status) {
  STD_TORCH_CHECK(status != cudaErrorNoKernelImageForDevice, "lepo_kernels: ", op,
                  ": _C_cuda.so holds no code for this GPU (lepo info lists its architectures); "
                  "build it with LEPO_CUDA_ARCH_LIST, or set LEPO_BACKEND=reference");
  STD_TORCH_CHECK(status == cudaSuccess, "lepo_kernels: ", op, ": ", cudaGetErrorString(status));
}

}  // namespace lepo
