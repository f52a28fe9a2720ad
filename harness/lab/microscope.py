"""One layer under the microscope, to answer whether it is special.

Its tensors' values in histograms, its experts' outputs and how much of them cancels, each figure
beside the same of every other layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.distance import finite_or_none
from harness.lab.rounding import condition
from harness.lab.weights import matrix
from harness.model.quants import dequantise
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lab.rounding import Floats
    from harness.model import Model, Tensor
    from harness.reference import Oracle

_SAMPLED = 1 << 18  # values of a tensor: whole rows, evenly spread
# Bins of the histograms, in root mean squares; what lies beyond is in the outer ones.
EDGES = (-math.inf, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, math.inf)
_OUTLIER = 3.5
_NORMAL_MAD = 0.6745  # median absolute deviation of a normal distribution of deviation 1
_STAGES = frozenset({"ffn_swigl", "ffn_out", "moe_router", "moe_router_indices", "moe_ffn_out"})


@dataclass(frozen=True)
class TensorValues:
    """Values of a tensor, sampled: ``counts`` by ``EDGES``, ``peak`` is largest over RMS."""

    name: str
    type: str
    sampled: int
    rms: float
    peak: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ExpertOutput:
    """One expert over the prompt.

    ``norm``: of its output, root mean square over its tokens. ``down_condition``: of its down
    product, median of ``sum |terms| / |sum|`` over rows, of its first token.
    """

    expert: int
    tokens: int
    norm: float
    down_condition: float


@dataclass(frozen=True)
class Statistic:
    """A figure of the layer beside those of all others.

    ``score`` is its distance from their median in median absolute deviations, scaled to standard
    deviations of a normal distribution. Outside all others' range lies every 24th figure of a
    layer of 48 by chance alone; a score above 3.5 is an outlier (Iglewicz and Hoaglin 1993).
    """

    what: str
    value: float
    least: float
    most: float
    score: float

    @classmethod
    def of(cls, what: str, value: float, others: Sequence[float]) -> Statistic:
        """Hold a figure against those of the other layers."""
        middle = float(np.median(others))
        spread = float(np.median(np.abs(np.array(others) - middle))) / _NORMAL_MAD
        away = abs(value - middle)
        score = away / spread if spread > 0 else 0.0 if away == 0 else math.inf
        return cls(what, value, min(others), max(others), score)

    @property
    def special(self) -> bool:
        """Whether it is an outlier, and outside all others' range."""
        return not self.least <= self.value <= self.most and self.score > _OUTLIER


@dataclass(frozen=True)
class LayerView:
    """What was seen of a layer."""

    layer: int
    tensors: tuple[TensorValues, ...]
    experts: tuple[ExpertOutput, ...]
    statistics: tuple[Statistic, ...]
    reference: str
    positions: int

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "schema": "moe-harness/layer/1",
            "layer": self.layer,
            "reference": self.reference,
            "positions": self.positions,
            "histogram_edges_rms": [finite_or_none(edge) for edge in EDGES],
            "tensors": [{**vars(t), "counts": list(t.counts)} for t in self.tensors],
            "experts": [
                {**vars(e), "down_condition": finite_or_none(e.down_condition)}
                for e in self.experts
            ],
            "statistics": [
                {
                    "what": s.what,
                    "value": finite_or_none(s.value),
                    "others_least": finite_or_none(s.least),
                    "others_most": finite_or_none(s.most),
                    "score": finite_or_none(s.score),
                    "special": s.special,
                }
                for s in self.statistics
            ],
            "special": [s.what for s in self.statistics if s.special],
        }

    def lines(self) -> list[str]:
        """Tables: tensors, experts, statistics, and the answer."""
        lines = [
            f"{'tensor':<16} {'type':<5} {'rms':>10} {'peak/rms':>9}  share by rms below "
            + " ".join(f"{edge:g}" for edge in EDGES[1:])
        ]
        for t in self.tensors:
            shares = " ".join(f"{100 * count / t.sampled:.1f}" for count in t.counts)
            lines.append(f"{t.name:<16} {t.type:<5} {t.rms:10.3e} {t.peak:9.2f}  {shares} %")
        lines.append(f"{'expert':>6} {'tokens':>6} {'output norm':>12} {'condition of down':>18}")
        lines += [
            f"{e.expert:>6} {e.tokens:>6} {e.norm:12.4e} {e.down_condition:18.1f}"
            for e in self.experts
        ]
        lines += [
            f"{s.what}: {s.value:.4g}, other layers {s.least:.4g} to {s.most:.4g}, score "
            f"{s.score:.1f}" + (" SPECIAL" if s.special else "")
            for s in self.statistics
        ]
        special = [s.what for s in self.statistics if s.special]
        answer = f"special by {', '.join(special)}" if special else "not special by any of these"
        return [*lines, f"layer {self.layer} is {answer}"]


def look_at(oracle: Oracle, ids: Sequence[int], layer: int) -> LayerView:
    """Decode ``ids`` with the oracle, and look at one layer beside all others."""
    model, layers = oracle.model, range(oracle.config.layers)
    oracle.reset()
    captures = oracle.run(ids, Plan(_STAGES)).captures
    figures = [_figures(model, captures, index) for index in layers]
    statistics = []
    for what, value in figures[layer].items():
        others = [
            figures[index][what] for index in layers if index != layer and what in figures[index]
        ]
        if others:
            statistics.append(Statistic.of(what, value, others))
    return LayerView(
        layer,
        tuple(_tensor_values(tensor, layer) for tensor in _tensors(model, layer)),
        tuple(_expert_outputs(model, captures, layer)),
        tuple(statistics),
        oracle.name,
        len(ids),
    )


def _figures(model: Model, captures: Sequence[Capture], layer: int) -> dict[str, float]:
    """One figure a name; the same names for layers of the same tensors."""
    found: dict[str, float] = {}
    for tensor in _tensors(model, layer):
        seen = _tensor_values(tensor, layer)
        found[f"rms of {seen.name}"], found[f"peak/rms of {seen.name}"] = seen.rms, seen.peak
    outputs = [float(np.linalg.norm(seen["moe_ffn_out", layer])) for seen in captures]
    found["norm of moe_ffn_out"] = float(np.mean(outputs))
    mixed = [np.median(condition(_mixed_terms(model, seen, layer).T)) for seen in captures]
    found["condition of the weighted sum"] = float(np.mean(mixed))
    return found


def _mixed_terms(model: Model, seen: Capture, layer: int) -> Floats:
    """Weighted expert outputs, float64 ``[top_k, hidden]``."""
    weights = seen["moe_router", layer].astype(np.float64)
    down = seen["ffn_out", layer].astype(np.float64).reshape(model.config.top_k, -1)
    return np.asarray(weights[:, None] * down)


def _expert_outputs(model: Model, captures: Sequence[Capture], layer: int) -> list[ExpertOutput]:
    c = model.config
    outputs: dict[int, list[Floats]] = {}
    first: dict[int, Floats] = {}
    for seen in captures:
        down = seen["ffn_out", layer].astype(np.float64).reshape(c.top_k, -1)
        gated = seen["ffn_swigl", layer].astype(np.float64).reshape(c.top_k, -1)
        for slot, expert in enumerate(int(i) for i in seen["moe_router_indices", layer]):
            outputs.setdefault(expert, []).append(down[slot])
            first.setdefault(expert, gated[slot])
    tensor = model.layer(layer, "ffn_down_exps")
    return [
        ExpertOutput(
            expert,
            len(rows),
            float(np.sqrt(np.mean([row @ row for row in rows]))),
            float(np.median(condition(matrix(tensor, expert) * first[expert]))),
        )
        for expert, rows in sorted(outputs.items())
    ]


def _tensors(model: Model, layer: int) -> list[Tensor]:
    prefix = f"blk.{layer}."
    return [tensor for name, tensor in model.tensors.items() if name.startswith(prefix)]


def _tensor_values(tensor: Tensor, layer: int) -> TensorValues:
    blocks = tensor.blocks.reshape(-1, tensor.blocks.shape[-1])
    rows = max(1, _SAMPLED // tensor.shape[-1])
    values = dequantise(blocks[:: max(1, -(-len(blocks) // rows))], tensor.format).astype(
        np.float64
    )
    rms = float(np.sqrt(np.mean(np.square(values))))
    scaled = values.reshape(-1) / (rms or 1.0)
    inner = np.searchsorted(EDGES[1:-1], scaled, side="right")
    counts = np.bincount(inner, minlength=len(EDGES) - 1)
    return TensorValues(
        tensor.name.removeprefix(f"blk.{layer}.").removesuffix(".weight"),
        tensor.format.name,
        values.size,
        rms,
        float(np.abs(scaled).max()),
        tuple(int(count) for count in counts),
    )
