"""Where a traced step writes its stages: one buffer on the device, read back as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.backends.cuda.memory import download, poison_f32

if TYPE_CHECKING:
    from harness.backends.cuda.memory import DeviceMemory
    from harness.model import Config
    from harness.stages import Capture


def stage_sizes(config: Config) -> dict[str, int]:
    """Values of every per-layer stage that this backend provides.

    Attention's scores and weights are not among them: they never exist as a whole.
    """
    c = config
    experts = c.top_k * c.expert_width
    return {
        "embedding": c.hidden,
        "attn_norm": c.hidden,
        "qkv_matmul": c.q_width + 2 * c.kv_width,
        "q_post_rope": c.q_width,
        "k_post_rope": c.kv_width,
        "attention": c.q_width,
        "attn_out": c.hidden,
        "post_attn_residual": c.hidden,
        "ffn_norm": c.hidden,
        "ffn_gate": experts,
        "ffn_up": experts,
        "ffn_silu": experts,
        "ffn_swigl": experts,
        "ffn_out": c.top_k * c.hidden,
        "post_ffn_residual": c.hidden,
        "moe_router": c.top_k,
        "moe_ffn_out": c.hidden,
        "moe_router_indices": c.top_k,
    }


class Trace:
    """Addresses of every stage of every layer; NaN until a step has written them."""

    def __init__(self, config: Config, memory: DeviceMemory) -> None:
        self._sizes = stage_sizes(config)
        self._layers, self._hidden = config.layers, config.hidden
        ends = np.cumsum(list(self._sizes.values()))
        starts = [0, *(int(end) for end in ends[:-1])]
        self._starts: dict[str, int] = dict(zip(self._sizes, starts, strict=True))
        self._layer = int(ends[-1])
        self._count = self._layers * self._layer + self._hidden
        self._address = memory.floats(self._count, "trace")

    def at(self, stage: str, layer: int) -> int:
        """Address of a layer's stage."""
        return self._address + 4 * (layer * self._layer + self._starts[stage])

    def size(self, stage: str) -> int:
        """Values of a stage."""
        return self._sizes[stage]

    @property
    def final_norm(self) -> int:
        """Address of ``final_norm``."""
        return self._address + 4 * self._layers * self._layer

    def poison(self) -> None:
        """Fill with NaN, so that a stage that is not written cannot pass."""
        poison_f32(self._address, self._count)

    def read(self, capture: Capture) -> None:
        """Put what the capture wants."""
        values = np.empty(self._count, dtype=np.float32)
        download(self._address, values)
        for layer in range(self._layers):
            for stage, size in self._sizes.items():
                if capture.wants(stage, layer):
                    start = layer * self._layer + self._starts[stage]
                    part = values[start : start + size]
                    ids = stage == "moe_router_indices"
                    capture.put(stage, layer, part.view(np.int32) if ids else part)
        capture.put("final_norm", None, values[-self._hidden :])
