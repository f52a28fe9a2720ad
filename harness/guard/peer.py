"""A decoder in the oracle's place: parity against another backend or numerics.

It has no routing replay: only the oracle can be told which experts to take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.reference import Oracle, Routing, Run
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.reference import Replay


_NOTHING = Plan(frozenset())


class PeerReference(Oracle):
    """Answers as an oracle, with a decoder's values.

    Router logits come from the decoder's own ``ffn_norm`` stage times the router's weights in
    float64; a single layer's experts (asked for at ties) are computed by the oracle's arithmetic.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        super().__init__(decoder.model, "cpu", decoder.numerics.oracle_activation, capacity)
        self.decoder = decoder

    @property
    def name(self) -> str:
        """``<backend>:<numerics>``."""
        return f"{self.decoder.backend}:{self.decoder.numerics.name}"

    def reset(self) -> None:
        """Forget the sequence."""
        super().reset()
        self.decoder.reset()

    def rewind(self, position: int) -> None:
        """Go back to an earlier position."""
        super().rewind(position)
        self.decoder.rewind(position)

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the decoder's cache."""
        self.decoder.fill_cache(keys, values)
        self.position = keys.shape[1]

    def run(
        self,
        ids: Sequence[int],
        plan: Plan = _NOTHING,
        forced: NDArray[np.floating] | None = None,
        replay: Replay | None = None,
    ) -> Run:
        """Decode tokens; ``replay`` is shown the routing, and its answers are not taken."""
        captures, logits = [], []
        for place, token in enumerate(ids):
            seen = Capture(Plan(plan.stages | {"ffn_norm", "moe_router_indices"}))
            given = None if forced is None else forced[place].astype(np.float32)
            logits.append(self.decoder.step(token, seen, given).astype(np.float64))
            captures.append(seen)
            if replay is not None:
                for layer in range(self.config.layers):
                    replay.experts(self._routing(seen, layer))
            self.position += 1
        return Run(captures, np.stack(logits))

    def _routing(self, seen: Capture, layer: int) -> Routing:
        x = seen["ffn_norm", layer].astype(np.float64)
        weights = self.model.layer(layer, "ffn_gate_inp").values().astype(np.float64)
        chosen = seen["moe_router_indices", layer].astype(np.int64)
        return Routing(layer, self.position, weights @ x, x, weights, chosen)
