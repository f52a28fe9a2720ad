"""Guarded decodes of several sequences at once: one model, batch after batch."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from harness.backends import check_batch, open_batch
from harness.guard import guard
from harness.meter.batch import BatchMeasurement, BatchWorkload, Seen, measure_batch
from harness.suite import DecodeSession

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.meter.batch import BatchCheck
    from harness.meter.decode import Cache
    from harness.meter.stopping import StoppingRule
    from harness.model import Model
    from harness.stages import Capture


class BatchSession(DecodeSession):
    """Decodes batches on the GPU, on weights that are loaded once.

    A fault (``plant``) is planted in the last sequence alone: one is enough to reject a batch.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str = "auto",
        numerics: str | None = None,
        device: int = 0,
        plant: str | None = None,
    ) -> None:
        super().__init__(model, backend=backend, numerics=numerics, device=device)
        self._plant_in_last = plant

    def measure_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        tokens: int,
        depth: int = 0,
        rule: StoppingRule | None = None,
    ) -> BatchMeasurement:
        """Decode ``tokens`` after each prompt, with ``depth`` positions cached before each.

        Raises
        ------
        Rejected
            By the guard of any sequence, or because a timed pass was not the guarded one.
        BadInput
            For a backend that decodes one sequence alone, prompts that are not of one length, more
            than the model's context, or more sequences than the GPU has room for.

        """
        workload = BatchWorkload(tuple(map(tuple, prompts)), depth, tokens)
        capacity = self._capacity(workload.sequences[0])
        check_batch(
            self._model,
            backend=self._backend,
            capacity=capacity,
            size=len(prompts),
            device=self._device,
            loaded=self._decoder is not None,
        )
        with closing(open_batch(self._open(capacity), len(prompts), self._plant_in_last)) as batch:
            return measure_batch(
                batch, workload, self._guarding, instruments=self._instruments(), rule=rule
            )

    @contextmanager
    def _guarding(self, candidate: Decoder) -> Iterator[BatchCheck]:
        """Open one oracle for all sequences, which forgets each before it sees the next."""
        with self._oracle_of(candidate) as oracle:

            def check(member: Decoder, ids: Sequence[int], cache: Cache | None) -> Seen:
                chosen: list[NDArray[np.integer]] = []

                def keep(captures: list[Capture], _oracles: list[Capture]) -> None:
                    chosen.append(_experts(captures, member.model.config.layers))

                evidence = guard(member, oracle, ids, cache=cache, keep=keep)
                return Seen(evidence, chosen[0])

            yield check


def _experts(captures: Sequence[Capture], layers: int) -> NDArray[np.integer]:
    """Ids that a decoder chose, ``[positions, layers, top_k]``."""
    return np.stack(
        [
            np.stack([capture["moe_router_indices", n].astype(np.int64) for n in range(layers)])
            for capture in captures
        ]
    )
