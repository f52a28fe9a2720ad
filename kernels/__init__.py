"""Device code: one .cu a kernel family, its launcher beside it; imports nothing of harness."""

from kernels import (
    argmax,
    attention,
    embedding,
    experts,
    fold,
    matvec,
    pack,
    read_bandwidth,
    router,
)

FAMILIES = tuple(
    module.FAMILY
    for module in (
        embedding,
        matvec,
        attention,
        router,
        experts,
        argmax,
        pack,
        fold,
        read_bandwidth,
    )
)

__all__ = ["FAMILIES"]
