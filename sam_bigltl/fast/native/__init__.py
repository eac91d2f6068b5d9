"""C++ kernels for CPUs with AVX2 or more, and for Arm's: in the wheel, or compiled when `optimize()` asks for them."""
