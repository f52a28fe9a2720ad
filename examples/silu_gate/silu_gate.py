"""Launches ``silu_gate.cu``, and declares what it must compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.workbench import Declaration, Limits
from kernels.family import POINTER, Family, struct
from kernels.launch import THREADS, blocks_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.workbench import Arrays
    from kernels.compiler import Program

ROWS, WIDTH = 64 * 8, 768  # 64 tokens of 8 experts each, as wide as Qwen3-30B-A3B's experts

FAMILY = Family(
    "silu_gate",
    {
        "silu_gate": struct(
            ("gate", POINTER),
            ("up", POINTER),
            ("weights", POINTER),
            ("out", POINTER),
            ("rows", np.int32),
            ("width", np.int32),
        )
    },
    plants=(
        "no_sigmoid",
        "unweighted",
        "up_of_the_next_row",
        "last_row_missing",
        "rounded_to_half",
    ),
    folder=Path(__file__).parent,
)


def launch(program: Program, buffers: Mapping[str, int], stream: object) -> None:
    """Launch once; ``buffers`` are the addresses of the inputs and outputs declared below."""
    program.kernel(FAMILY, "silu_gate").launch(
        {**buffers, "rows": ROWS, "width": WIDTH},
        grid=(blocks_for(ROWS * WIDTH // 4, THREADS, program.device, 8),),
        stream=stream,
    )


def inputs(rng: np.random.Generator) -> Arrays:
    """Draw gates on both sides of the sigmoid's bend, and weights that sum to 1 for each token."""
    weights = rng.random((ROWS // 8, 8), dtype=np.float32)
    return {
        "gate": 2 * rng.standard_normal((ROWS, WIDTH), dtype=np.float32),
        "up": rng.standard_normal((ROWS, WIDTH), dtype=np.float32),
        "weights": (weights / weights.sum(axis=1, keepdims=True)).reshape(ROWS),
    }


def reference(given: Arrays) -> Arrays:
    """Compute the same in float64, sharing nothing with the kernel."""
    gate, up, weights = (given[name].astype(np.float64) for name in ("gate", "up", "weights"))
    return {"out": weights[:, None] * gate / (1 + np.exp(-gate)) * up}


SILU_GATE = Declaration(
    name="silu_gate",
    family=FAMILY,
    launch=launch,
    inputs=inputs,
    outputs={"out": ((ROWS, WIDTH), np.float32)},
    reference=reference,
    # float32 rounds by 6e-8 at each of five steps; float16, the nearest fault, by 5e-4.
    limits=Limits(rel_l2=1e-6, row=1e-5),
    faults=FAMILY.plants,
    bytes_read=lambda given: sum(array.nbytes for array in given.values()),
)
