"""C++ kernels for the CPU (csrc/cpu), in float32; their inputs are float32, bfloat16 or float16."""
