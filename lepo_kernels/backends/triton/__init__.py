"""Triton kernels for CUDA and ROCm GPUs; float32, bfloat16, float16 in, float32 inside."""
