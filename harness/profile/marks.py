"""Tokens marked for another profiler: NVTX ranges for nsys, start and stop for ncu.

Nothing is recorded here, so nobody's CUPTI is disturbed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.meter.decode import guarded_run
from harness.meter.lock import measuring

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.meter.decode import Check, GuardedRun, Workload


def mark_tokens(
    decoder: Decoder, workload: Workload, check: Check, *, unguarded: bool = False
) -> GuardedRun:
    """Guard, then decode the tokens step by step, each in a range ``token N``.

    All of them lie between ``cudaProfilerStart`` and ``cudaProfilerStop``; guard and prompt are
    outside.

    Raises
    ------
    Rejected
        Where the guard rejects, or a step computed something else (unless ``unguarded``).
    BadInput
        Where this torch has no NVTX.

    """
    import torch  # noqa: PLC0415 - slow to load

    if not torch.cuda.is_available():
        raise BadInput(
            f"torch {torch.__version__} sees no GPU and has no NVTX; install torch's CUDA build"
        )
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    done = 0

    def step(token: int) -> NDArray[np.float32]:
        nonlocal done
        index = done - len(workload.prompt)
        done += 1
        if index < 0:
            return decoder.step(token)
        if index == 0:
            cuda.cudaProfilerStart()
        torch.cuda.nvtx.range_push(f"token {index}")  # type: ignore[no-untyped-call]
        try:
            return decoder.step(token)
        finally:
            torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]

    with measuring(decoder.device_id):
        run = guarded_run(decoder, workload, check, unguarded=unguarded)
        try:
            run.stepped(step)
        finally:
            cuda.cudaProfilerStop()
    return run
