"""Kernels by backend, and the registry of what each can run."""
