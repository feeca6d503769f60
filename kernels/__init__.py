"""Triton kernels and their launchers, one file per family of ops; nothing here registers anything on import."""
