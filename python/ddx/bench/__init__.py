"""Measurements of the kernels: cases, correctness gates, times, and what the compiler makes of them."""
