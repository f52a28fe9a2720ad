"""What one decoding step let be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.stages.names import STAGES, WHOLE_MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.stages.plan import Plan


class Capture:
    """Stage values of one position; a stage that was not captured is absent, never zero.

    ``capture[stage, layer]`` (``layer`` None for whole-model stages) is a flat array: float32 of
    a backend, float64 of the oracle, int32 for ``moe_router_indices``.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._values: dict[tuple[str, int | None], NDArray[np.generic]] = {}

    def wants(self, stage: str, layer: int | None = None) -> bool:
        """Whether a decoder should put this stage."""
        return self.plan.wants(stage, layer)

    def put(self, stage: str, layer: int | None, values: NDArray[np.generic]) -> None:
        """Store a copy, flattened; a stage that the plan does not name is dropped."""
        if stage not in STAGES:
            raise KeyError(f"{stage!r} is no stage; there are {', '.join(STAGES)}")
        if (stage in WHOLE_MODEL) != (layer is None):
            raise ValueError(f"{stage} {'has no' if stage in WHOLE_MODEL else 'needs a'} layer")
        if self.wants(stage, layer):
            self._values[stage, layer] = np.array(values).reshape(-1)

    def __getitem__(self, key: tuple[str, int | None]) -> NDArray[np.generic]:
        try:
            return self._values[key]
        except KeyError:
            raise KeyError(f"stage {key[0]} of layer {key[1]} was not captured") from None

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def keys(self) -> list[tuple[str, int | None]]:
        """Captured (stage, layer) pairs, in the order of capture."""
        return list(self._values)
