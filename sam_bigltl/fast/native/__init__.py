"""C++ kernels for CPUs with AVX512-BF16.

They are compiled on the user's machine, once, when `optimize(native=True)` asks for them.
"""
