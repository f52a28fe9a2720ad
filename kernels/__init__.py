"""Device code: one .cu a kernel family, its launcher beside it; imports nothing of harness."""
