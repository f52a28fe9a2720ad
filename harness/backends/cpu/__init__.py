"""The CPU backend: a decoder in compiled Python, straight from the mapped blocks.

Importing ``harness.backends.cpu.decoder`` compiles the kernels (a few seconds the first time, from
the disk cache after that); importing this package does not.
"""
