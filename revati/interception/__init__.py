"""CUDA, NVML, cuBLAS and NCCL without a GPU: the native stand-ins and what configures them."""
