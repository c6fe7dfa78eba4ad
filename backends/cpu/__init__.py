"""The CPU backend: C++ kernels of ktc._cpu, one op a file."""
