"""A kernel family: one ``.cu``, the arguments of its kernels, and its compiler options.

A family declares itself beside its launcher; ``compiler`` compiles it, on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent

POINTER = np.uint64

ACCUMULATORS = ("f32", "f64", "kahan", "chunked", "quad")
ACTIVATIONS = ("f32", "q8_k", "i24")
WIDTHS = ("f32", "f64")


@dataclass(frozen=True)
class Variant:
    """How the kernels round, chosen when they are compiled.

    Attributes
    ----------
    accumulator
        Of dot products: one of ``ACCUMULATORS``.
    activation
        ``f32``; ``q8_k``: what meets a K-quant is rounded to int8 first; ``i24``: what meets a
        tiled K-quant is 24-bit fixed point, and its sums are exact (``tiles.cuh``).
    softmax, weighted_sum, swiglu
        ``f32`` or ``f64``: the router's softmax, the sum over experts, silu(gate) * up.
    top_k_epsilon
        0: exact top-k. Above: experts whose logits lie within it of the last place are ranked by
        index, so that smaller rounding moves no set.
    plant
        A fault to plant, None for none; only the families that have it change.

    """

    accumulator: str = "f32"
    activation: str = "f32"
    softmax: str = "f32"
    weighted_sum: str = "f32"
    swiglu: str = "f32"
    top_k_epsilon: float = 0.0
    plant: str | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("accumulator", ACCUMULATORS),
            ("activation", ACTIVATIONS),
            ("softmax", WIDTHS),
            ("weighted_sum", WIDTHS),
            ("swiglu", WIDTHS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}, expected one of {known}")
        if not 0 <= self.top_k_epsilon < np.inf:
            raise ValueError(f"top_k_epsilon {self.top_k_epsilon}, expected a finite number >= 0")

    def define(self, choice: str) -> str:
        """Compiler option of one choice, named as the attribute is."""
        return {
            "accumulator": f"-DACCUMULATOR={self.accumulator.upper()}",
            "activation": {
                "f32": "-DROUND_ACTIVATIONS=0",
                "q8_k": "-DROUND_ACTIVATIONS=1",
                "i24": "-DFIXED_ACTIVATIONS=1",
            }[self.activation],
            "softmax": f"-DSOFTMAX_F64={int(self.softmax == 'f64')}",
            "weighted_sum": f"-DWEIGHTED_SUM_F64={int(self.weighted_sum == 'f64')}",
            "swiglu": f"-DSWIGLU_F64={int(self.swiglu == 'f64')}",
            "top_k_epsilon": f"-DSTABLE_TOP_K={float(self.top_k_epsilon)!r}f",
        }[choice]


@dataclass(frozen=True)
class Heads:
    """Shape that attention is compiled for: values of a head, query heads of a key-value head."""

    head_dim: int = 128
    group: int = 8

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2 or self.group < 1:
            raise ValueError(
                f"heads of {self.head_dim}, {self.group} a group; expected even, 1 or more"
            )


@dataclass(frozen=True)
class Family:
    """One ``.cu`` and how it is compiled.

    Attributes
    ----------
    name
        The file is ``kernels/<name>.cu``.
    arguments
        For each kernel its argument struct, laid out as C does (``align=True``). The size goes
        into the compilation, where a ``static_assert`` compares it.
    choices
        Attributes of ``Variant`` that the source reads.
    plants
        Faults that can be planted in it.
    per_heads
        Whether it is compiled for a shape of heads.

    """

    name: str
    arguments: Mapping[str, np.dtype[np.void]]
    choices: tuple[str, ...] = ()
    plants: tuple[str, ...] = ()
    per_heads: bool = False
    folder: Path = field(default=FOLDER)

    @property
    def path(self) -> Path:
        """The source file."""
        return self.folder / f"{self.name}.cu"

    def options(self, variant: Variant, heads: Heads) -> list[str]:
        """Options of nvcc that depend on the numerics, the shape and the planted fault."""
        options = ["-std=c++17", "--fmad=true", "-lineinfo"]
        options += [
            f"-D{kernel.upper()}_ARGS_BYTES={dtype.itemsize}"
            for kernel, dtype in self.arguments.items()
        ]
        options += [variant.define(choice) for choice in self.choices]
        if self.per_heads:
            options += [f"-DHEAD_DIM={heads.head_dim}", f"-DGROUP={heads.group}"]
        if variant.plant in self.plants:
            options.append(f"-DPLANT_{variant.plant.upper()}")
        return options


def struct(*fields: tuple[str, object]) -> np.dtype[np.void]:
    """Lay an argument struct out as C does."""
    return np.dtype(list(fields), align=True)
