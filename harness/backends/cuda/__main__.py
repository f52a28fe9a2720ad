"""``python -m harness.backends.cuda [--arch ARCH] [MODEL ...]``: compiles all kernels beforehand.

A decoder compiles what it needs when it is opened, one source after the other. This compiles every
numerics and every planted fault for the shapes of the given models (and of the embedded one), on
all cores at once, into the cache that decoders read. It needs no GPU where ARCH is given.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from harness.backends.cuda.decoder import variant_of
from harness.backends.cuda.gpu import find_gpu
from harness.errors import BadInput
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import CUDA_NUMERICS
from kernels import FAMILIES
from kernels.compiler import CompileError, ptx
from kernels.family import Family, Heads, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model import Config

_BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Compile; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.backends.cuda", description=__doc__)
    parser.add_argument("--arch", help="such as sm_90 (default: this machine's GPU)")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    arguments = parser.parse_args(argv)
    try:
        arch: str = arguments.arch or find_gpu(0).arch
        models = [embedded_path(), *arguments.models]
        jobs = needed([open_model(path).config for path in models])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: ptx(job[0], job[1], job[2], arch), jobs))
    except (BadInput, CompileError) as error:
        print(f"moe-harness: {error}", file=sys.stderr)
        return _BAD_INPUT
    print(f"{len(jobs)} compilations for {arch}")
    return 0


def needed(configs: Sequence[Config]) -> list[tuple[Family, Variant, Heads]]:
    """Every family in every numerics and with every fault, each compilation once."""
    shapes = [Heads(c.head_dim, c.heads // c.kv_heads) for c in configs]
    jobs: dict[tuple[str, ...], tuple[Family, Variant, Heads]] = {}
    for numerics in CUDA_NUMERICS.values():
        for family in FAMILIES:
            for plant in (None, *family.plants):
                variant = variant_of(numerics, plant)
                for heads in shapes:
                    options = family.options(variant, heads)
                    jobs.setdefault((family.name, *options), (family, variant, heads))
    return list(jobs.values())


if __name__ == "__main__":
    sys.exit(main())
