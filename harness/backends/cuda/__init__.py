"""The CUDA backend: PyCUDA launches the kernels of ``kernels/``; a token is one graph replay."""
