"""Guarded timings of kernel families: one model, numerics after numerics."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from harness.backends import turned_to
from harness.decoder import COPIES, FamilyTimed
from harness.meter.decode import Workload
from harness.meter.families import FamiliesMeasurement, measure_families
from harness.suite import DecodeSession, open_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from harness.decoder import Decoder
    from harness.meter.stopping import StoppingRule
    from harness.model import Model
    from harness.reference import Oracle


class FamilySession(DecodeSession):
    """Times kernel families on the GPU, on weights that are uploaded once in each form.

    Numerics that read the same form should follow each other: two forms are never on the GPU at a
    time.
    """

    def __init__(self, model: Model, *, device: int = 0, plant: str | None = None) -> None:
        super().__init__(model, backend="cuda", device=device, plant=plant)
        self._oracle: Oracle | None = None

    def __exit__(self, *exception: object) -> None:
        self._close_oracle()
        super().__exit__(*exception)

    def measure_families(
        self,
        prompt: Sequence[int],
        families: Sequence[str],
        *,
        numerics: str | None = None,
        depth: int = 0,
        rule: StoppingRule | None = None,
    ) -> FamiliesMeasurement:
        """Time families at the last token of ``prompt``, with ``depth`` positions cached before.

        Raises
        ------
        Rejected, BadInput, KeyError
            As ``harness.meter.families.measure_families``; for unknown numerics, and for more
            positions than the model's context.

        """
        workload = Workload(tuple(prompt), depth, tokens=0)
        return measure_families(
            self._turned_to(numerics, self._capacity(workload)),
            workload,
            families,
            self._check,
            instruments=self._instruments(),
            rule=rule,
        )

    def _capacity(self, workload: Workload) -> int:
        """Room for the copies of argmax, too: each of them moves on by one position."""
        positions = super()._capacity(workload) + COPIES - 1
        return min(positions, self._model.config.context_length)

    def _oracle_of(self, candidate: Decoder) -> AbstractContextManager[Oracle]:
        """Open one, or take the last one: it stays resident, as no memory is measured here."""
        numerics, last = candidate.numerics, self._oracle
        wanted = (numerics.oracle_activation, numerics.cache, candidate.capacity)
        if last is None or (last.activation, last.cache, last.capacity) != wanted:
            self._close_oracle()
            last = open_oracle(self._model, numerics, candidate.capacity, self._device)
            self._oracle = last
        return nullcontext(last)

    def _close_oracle(self) -> None:
        if self._oracle is not None:
            self._oracle.close()
            self._oracle = None

    def _turned_to(self, name: str | None, capacity: int) -> FamilyTimed:
        last, self._decoder = self._decoder, None  # closed, whatever comes
        decoder = self._decoder = turned_to(
            last,
            self._model,
            backend="cuda",
            numerics=name,
            capacity=capacity,
            device=self._device,
            plant=self._plant,
        )
        if not isinstance(decoder, FamilyTimed):
            raise TypeError(f"the {decoder.backend} backend cannot time its kernel families")
        return decoder
