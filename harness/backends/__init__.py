"""Who computes: one decoder for each backend, all of the protocol in ``harness.decoder``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.backends.cpu.faults import PLANTS
from harness.errors import BadInput, HardwareAbsent
from harness.numerics import find_numerics

if TYPE_CHECKING:
    from harness.decoder import Decoder
    from harness.model import Model

BACKENDS = ("cpu", "cuda")

__all__ = ["BACKENDS", "PLANTS", "open_decoder"]


def open_decoder(
    model: Model,
    *,
    backend: str = "auto",
    numerics: str = "f32",
    capacity: int = 1024,
    device: int = 0,
    plant: str | None = None,
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
        A name of ``harness.numerics.NUMERICS``.
    capacity
        Positions in the KV cache.
    device
        Which GPU, for backends that run on one.
    plant
        A fault of ``PLANTS`` to plant, None for none.

    Raises
    ------
    BadInput
        For an unknown backend or numerics.
    HardwareAbsent
        For a backend that cannot run here; nothing falls back unasked.
    KeyError
        For an unknown fault.

    """
    rounding = find_numerics(numerics)
    chosen = _fastest() if backend == "auto" else backend
    if chosen == "cpu":
        # Imported here, because it compiles.
        from harness.backends.cpu.decoder import CpuDecoder  # noqa: PLC0415

        return CpuDecoder(model, rounding, capacity, plant)
    if chosen == "cuda":
        raise HardwareAbsent(f"no CUDA backend in this version (device {device}); use cpu")
    raise BadInput(f"backend {backend!r} is unknown, expected auto or one of {', '.join(BACKENDS)}")


def _fastest() -> str:
    """What ``auto`` means on this machine; a CUDA backend will be asked for here."""
    return "cpu"
