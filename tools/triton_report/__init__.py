"""Reports what becomes of the Triton kernels when they are compiled, and predicts their times."""
