"""CUDA C++ kernels (csrc/cuda), in float32; their inputs are float32, bfloat16 or float16."""
