"""CUDA GPUs: fused operators become CUDA C, cubin and PTX, and a module that starts them."""
