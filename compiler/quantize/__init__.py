"""Quantized operators: integer kernels from Q/DQ graphs, and post-training quantization."""
