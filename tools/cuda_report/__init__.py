"""What the compiler says of every CUDA kernel, and what follows from it: docs/cuda-kernels.md."""
