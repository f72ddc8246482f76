"""Plain PyTorch kernels, any dtype and device; in float64 they are the oracle."""
