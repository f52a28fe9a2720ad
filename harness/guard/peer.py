"""A decoder in the oracle's place: parity against another backend or numerics.

It has no routing replay: only the oracle can be told which experts to take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.reference import Oracle, Routing
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.reference.oracle import Choose


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

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the decoder's cache."""
        self.decoder.fill_cache(keys, values)
        self.position = keys.shape[1]

    def step(
        self,
        token: int,
        capture: Capture | None = None,
        forced: NDArray[np.floating] | None = None,
        choose: Choose | None = None,
    ) -> NDArray[np.float64]:
        """Decode one token; ``choose`` is shown the routing, and its answer is not taken."""
        wanted = capture.plan.stages if capture is not None else frozenset()
        seen = Capture(Plan(wanted | {"ffn_norm", "moe_router_indices"}))
        given = None if forced is None else np.asarray(forced, dtype=np.float32)
        logits = self.decoder.step(token, seen, given)
        if capture is not None:
            for stage, layer in seen.keys():  # noqa: SIM118 - a capture is no mapping
                capture.put(stage, layer, seen[stage, layer])
        if choose is not None:
            for layer in range(self.config.layers):
                choose(self._routing(seen, layer))
        self.position += 1
        return logits.astype(np.float64)

    def _routing(self, seen: Capture, layer: int) -> Routing:
        x = seen["ffn_norm", layer].astype(np.float64)
        weights = self.model.layer(layer, "ffn_gate_inp").values().astype(np.float64)
        chosen = seen["moe_router_indices", layer].astype(np.int64)
        return Routing(layer, self.position, weights @ x, x, weights, chosen)
