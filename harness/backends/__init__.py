"""Who computes: one decoder for each backend, all of the protocol in ``harness.decoder``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.backends.cpu.faults import PLANTS
from harness.errors import BadInput
from harness.numerics import find_numerics

if TYPE_CHECKING:
    from harness.decoder import Batch, Decoder
    from harness.model import Model

BACKENDS = ("cpu", "cuda")

__all__ = [
    "BACKENDS",
    "PLANTS",
    "check_batch",
    "chosen_backend",
    "open_batch",
    "open_decoder",
    "turned_to",
]


def open_decoder(
    model: Model,
    *,
    backend: str = "auto",
    numerics: str | None = None,
    capacity: int = 1024,
    device: int = 0,
    plant: str | None = None,
    cache: str | None = None,
) -> Decoder:
    """Open a decoder.

    Parameters
    ----------
    model
        The opened model.
    backend
        One of ``BACKENDS``, or ``auto``: the fastest that this machine has. What was chosen
        stands in the decoder's ``backend`` and ``ran()``.
    numerics
        A name out of ``harness.numerics``; None: the backend's default.
    capacity
        Positions in the KV cache.
    device
        Which GPU, for backends that run on one.
    plant
        A fault of ``PLANTS`` to plant, None for none.
    cache
        ``f32`` or ``f16``: what keys and values are kept in; None: as the numerics has it.

    Raises
    ------
    BadInput
        For an unknown backend or numerics.
    HardwareAbsent
        For a backend that cannot run here; nothing falls back unasked.
    KeyError
        For an unknown fault.

    """
    chosen = chosen_backend(backend)
    rounding = find_numerics(numerics, chosen)
    if cache is not None:
        rounding = replace(rounding, cache=cache)
    if chosen == "cpu":
        # Imported here, because it compiles.
        from harness.backends.cpu.decoder import CpuDecoder  # noqa: PLC0415

        return CpuDecoder(model, rounding, capacity, plant)
    from harness.backends.cuda.decoder import CudaDecoder  # noqa: PLC0415

    return CudaDecoder(model, rounding, capacity, device, plant)


def turned_to(
    last: Decoder | None,
    model: Model,
    *,
    backend: str,
    numerics: str | None,
    capacity: int,
    device: int = 0,
    plant: str | None = None,
) -> Decoder:
    """Open a decoder of another numerics, on the last one's weights if it can read them.

    The last one is closed: two forms of the weights are never on a GPU at a time. ``device`` and
    ``plant`` are the last one's, if there is one.
    """
    if backend == "cuda" and last is not None:
        from harness.backends.cuda.decoder import CudaDecoder  # noqa: PLC0415

        rounding = find_numerics(numerics, backend)
        if isinstance(last, CudaDecoder) and last.shares_weights_with(rounding):
            try:
                return last.sibling(capacity, rounding)
            finally:
                last.close()
    if last is not None:
        last.close()
    return open_decoder(
        model, backend=backend, numerics=numerics, capacity=capacity, device=device, plant=plant
    )


def check_batch(
    model: Model, *, backend: str, capacity: int, size: int, device: int = 0, loaded: bool = False
) -> None:
    """Refuse a batch that cannot be, before anything is allocated.

    Parameters
    ----------
    model
        The opened model.
    backend
        One of ``BACKENDS``.
    capacity
        Positions in the KV cache of each sequence.
    size
        Sequences.
    device
        Which GPU.
    loaded
        Whether the weights are on it already.

    Raises
    ------
    BadInput
        For a backend that decodes one sequence alone, a size below 1, or where the GPU has no room.

    """
    if backend != "cuda":
        raise BadInput(
            f"the {backend} backend decodes one sequence, {size} were asked for; take the cuda "
            "backend on a GPU, or a batch of 1"
        )
    from harness.backends.cuda.batch import check_batch as check  # noqa: PLC0415

    check(model, capacity, size, device, loaded=loaded)


def open_batch(first: Decoder, size: int, plant: str | None = None) -> Batch:
    """Open ``size`` sequences on the weights of the first, whose decoder is given.

    ``plant`` is planted in the last of them alone.

    Raises
    ------
    BadInput
        As ``check_batch``.

    """
    from harness.backends.cuda.batch import CudaBatch  # noqa: PLC0415
    from harness.backends.cuda.decoder import CudaDecoder  # noqa: PLC0415

    if not isinstance(first, CudaDecoder):
        raise BadInput(f"the {first.backend} backend decodes one sequence, not {size}")
    return CudaBatch(first, size, plant)


def chosen_backend(backend: str) -> str:
    """What ``auto`` means on this machine: the GPU, where there is one that can be used.

    Raises
    ------
    BadInput
        For an unknown backend.

    """
    if backend == "auto":
        from harness.backends.cuda.gpu import is_here  # noqa: PLC0415

        return "cuda" if is_here() else "cpu"
    if backend not in BACKENDS:
        raise BadInput(
            f"backend {backend!r} is unknown, expected auto or one of {', '.join(BACKENDS)}"
        )
    return backend
