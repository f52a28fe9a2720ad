"""Local residuals: each small step of a layer, recomputed from that decoder's own inputs.

A step's residual is what the decoder wrote less what float64 makes of the very values that the
decoder read: errors that it was handed do not enter. So a step that is off is off by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.guard.routing import valid_ids
from harness.lab.rounding import ELEMENTARY, HALF, SURE, UNIT, sum_limit
from harness.lab.weights import matrix, other_readings, rounded_activations, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lab.rounding import Floats
    from harness.model import Model, Tensor
    from harness.stages import Capture


# Which stage each product reads.
_READ_FROM = {
    "qkv_matmul": "attn_norm",
    "attn_out": "attention",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "ffn_out": "ffn_swigl",
    "lm_head": "final_norm",
}


@dataclass(frozen=True)
class Residual:
    """One step at one place: relative errors (l2), each beside what float32 allows.

    ``rounded`` and ``rounded_limit`` are those of a product from activations rounded to ``q8_k``;
    None for other steps, and where the weights are no K-quant. ``half``: whether float16
    arithmetic would explain the error.
    """

    step: str
    layer: int | None
    position: int
    error: float
    limit: float
    half: bool
    tensor: str | None = None
    expert: int | None = None
    rounded: float | None = None
    rounded_limit: float | None = None

    @property
    def exact(self) -> bool:
        """Whether float32 explains it, with activations as they are."""
        return self.error <= self.limit

    @property
    def rounds(self) -> bool:
        """Whether float32 explains it, with activations rounded to ``q8_k``."""
        return (
            self.rounded is not None
            and self.rounded_limit is not None
            and self.rounded <= self.rounded_limit
        )

    @property
    def sound(self) -> bool:
        """Whether either does."""
        return self.exact or self.rounds

    @property
    def place(self) -> str:
        """Where, in words."""
        return f"layer {self.layer}, position {self.position}"


@dataclass(frozen=True)
class Choice:
    """A set of experts that does not follow from the decoder's own router logits."""

    layer: int
    position: int
    took: tuple[int, ...]
    dropped: tuple[int, ...]
    margin: float
    bound: float

    @property
    def is_tie(self) -> bool:
        """Whether float32's rounding of the logits explains it."""
        return self.margin <= self.bound


@dataclass(frozen=True)
class Reading:
    """Weights other than the file's that explain a product."""

    residual: Residual
    kind: str
    words: str
    error: float
    limit: float


class Steps:
    """The steps of one decoder's pass.

    Parameters
    ----------
    model
        Whose weights are the true ones.
    captures
        Of every position from 0 on; all stages of the layers that are asked for.
    cache
        ``f32`` or ``f16``: what the decoder keeps keys and values in.
    top_k_epsilon
        Of its numerics.

    """

    def __init__(
        self, model: Model, captures: Sequence[Capture], cache: str, top_k_epsilon: float = 0.0
    ) -> None:
        self._model, self._captures, self._cache = model, captures, cache
        self._epsilon = top_k_epsilon

    def of(self, layer: int, position: int) -> list[Residual]:
        """Every step of a layer whose stages are there, in the order of the forward pass."""
        found: list[Residual] = []
        here = _Here(self._captures[position], layer, position, found)
        with np.errstate(all="ignore"):  # what is not finite is found, not warned of
            self._attention(here)
            self._experts(here)
        return found

    def output(self, position: int) -> list[Residual]:
        """The steps behind the last layer."""
        found: list[Residual] = []
        last = self._model.config.layers - 1
        here = _Here(self._captures[position], last, position, found)
        with np.errstate(all="ignore"):
            x, normed = here["post_ffn_residual"], here["final_norm"]
            if x is not None and normed is not None:
                here.note(
                    "final_norm", normed, *self._norm(x, vector(self._model, None, "output_norm"))
                )
            logits = here["lm_head"]
            if normed is not None and logits is not None:
                here.product("lm_head", self._model.output, None, normed, logits)
        return found

    def choice(self, layer: int, position: int) -> Choice | None:
        """Whether the experts taken are the best by the decoder's own logits; None if so."""
        here = _Here(self._captures[position], layer, position, [])
        normed, ids = here["ffn_norm"], here["moe_router_indices"]
        if normed is None or ids is None or not np.isfinite(normed).all():
            return None
        c = self._model.config
        terms = matrix(self._model.layer(layer, "ffn_gate_inp")) * normed
        logits, limits = terms.sum(-1), sum_limit(terms)
        best = {int(i) for i in np.argsort(-logits, kind="stable")[: c.top_k]}
        if not valid_ids(ids, c.experts, c.top_k):
            return Choice(layer, position, (), tuple(sorted(best)), np.inf, 0.0)
        taken = {int(i) for i in ids}
        if taken == best:
            return None
        took = min(taken - best, key=lambda i: logits[i])
        dropped = max(best - taken, key=lambda i: logits[i])
        margin = float(logits[dropped] - logits[took])
        # A stable top-k ranks by index what lies within epsilon of the last place, on either side.
        bound = float(limits[dropped] + limits[took]) + 2 * self._epsilon
        return Choice(
            layer,
            position,
            tuple(sorted(taken - best)),
            tuple(sorted(best - taken)),
            margin if np.isfinite(margin) else np.inf,
            bound,
        )

    def reading(self, residual: Residual) -> Reading | None:
        """Find weights that explain a product which the file's do not."""
        if residual.tensor is None or residual.layer is None:
            return None
        here = _Here(self._captures[residual.position], residual.layer, residual.position, [])
        x, got = self._operands(here, residual)
        tensor = self._model[residual.tensor]
        with np.errstate(all="ignore"):
            for kind, words, weights in other_readings(tensor, residual.expert):
                for vectors in (x, _rounded(x, tensor)):
                    if vectors is not None:
                        error, limit, _ = _apart(got, *_multiply(weights, vectors))
                        if error <= limit:
                            return Reading(residual, kind, words, error, limit)
        return None

    # -- a layer ---------------------------------------------------------------------------------

    def _attention(self, here: _Here) -> None:
        model, c = self._model, self._model.config
        layer = here.layer
        x, normed, qkv = here["embedding"], here["attn_norm"], here["qkv_matmul"]
        if x is not None and normed is not None:
            here.note("attn_norm", normed, *self._norm(x, vector(model, layer, "attn_norm")))
        if normed is not None and qkv is not None:
            for short, part in zip(("attn_q", "attn_k", "attn_v"), self._split(qkv), strict=True):
                here.product("qkv_matmul", model.layer(layer, short), None, normed, part)
        q, k = here["q_post_rope"], here["k_post_rope"]
        if qkv is not None:
            for stage, got, index in (("q_post_rope", q, 0), ("k_post_rope", k, 1)):
                if got is not None:
                    weight = vector(model, layer, f"attn_{stage[0]}_norm")
                    heads = self._split(qkv)[index].reshape(-1, c.head_dim)
                    truth, limit = self._norm(heads, weight)
                    truth, limit = _rotated(truth, limit, here.position, c.rope_base)
                    here.note(stage, got, truth, limit)
        mixed, out = here["attention"], here["attn_out"]
        if q is not None and mixed is not None and (kept := self._kept(layer, here.position)):
            here.note("attention", mixed, *_attended(q.reshape(c.heads, c.head_dim), *kept))
        if mixed is not None and out is not None:
            here.product("attn_out", model.layer(layer, "attn_output"), None, mixed, out)
        here.sum("post_attn_residual", x, out)

    def _experts(self, here: _Here) -> None:
        model, c, layer = self._model, self._model.config, here.layer
        x, normed = here["post_attn_residual"], here["ffn_norm"]
        if x is not None and normed is not None:
            here.note("ffn_norm", normed, *self._norm(x, vector(model, layer, "ffn_norm")))
        raw, weights = here["moe_router_indices"], here["moe_router"]
        if raw is not None and valid_ids(raw, c.experts, c.top_k):
            ids = [int(i) for i in raw]
            if normed is not None and weights is not None:
                here.note("moe_router", weights, *self._shares(layer, normed, ids))
            self._expert_products(here, ids)
        self._swiglu(here)
        down, moe = here["ffn_out"], here["moe_ffn_out"]
        if weights is not None and down is not None and moe is not None:
            terms = weights[:, None] * down.reshape(c.top_k, c.hidden)
            limit = (c.top_k + 1) * UNIT * np.abs(terms).sum(0)
            here.note("moe_ffn_out", moe, terms.sum(0), limit)
        here.sum("post_ffn_residual", x, moe)

    def _expert_products(self, here: _Here, ids: list[int]) -> None:
        """Gate, up and down of each expert that was chosen."""
        c = self._model.config
        normed, gated = here["ffn_norm"], here["ffn_swigl"]
        own = None if gated is None else gated.reshape(c.top_k, c.expert_width)
        for stage, short in (
            ("ffn_gate", "ffn_gate_exps"),
            ("ffn_up", "ffn_up_exps"),
            ("ffn_out", "ffn_down_exps"),
        ):
            got = here[stage]
            if got is None:
                continue
            rows = got.reshape(c.top_k, -1)
            for slot, expert in enumerate(ids):
                shared = None if own is None else own[slot]
                x = shared if stage == "ffn_out" else normed
                if x is not None:
                    here.product(stage, self._model.layer(here.layer, short), expert, x, rows[slot])

    @staticmethod
    def _swiglu(here: _Here) -> None:
        gate, up, silu, gated = (
            here[name] for name in ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")
        )
        if gate is not None and silu is not None:
            truth = gate / (1 + np.exp(-gate))
            # exp(-x) from a product x * log2(e) is off by |x| units more.
            here.note("ffn_silu", silu, truth, (ELEMENTARY + np.abs(gate)) * UNIT * np.abs(truth))
        if silu is not None and up is not None and gated is not None:
            truth = silu * up
            # The one stage is rounded when it is written, the other when it is used.
            here.note("ffn_swigl", gated, truth, 4 * UNIT * np.abs(truth))

    def _norm(self, x: Floats, weight: Floats) -> tuple[Floats, Floats]:
        """RMSNorm of the last axis; a sum of squares has condition 1, and its root halves it."""
        mean = np.square(x).mean(-1, keepdims=True)
        truth = x / np.sqrt(mean + self._model.config.rms_eps) * weight
        return truth, (SURE * x.shape[-1] ** 0.5 / 2 + 4) * UNIT * np.abs(truth)

    def _split(self, qkv: Floats) -> list[Floats]:
        c = self._model.config
        return np.split(qkv, [c.q_width, c.q_width + c.kv_width])

    def _kept(self, layer: int, position: int) -> tuple[Floats, Floats] | None:
        """Keys and values of all positions so far, as the cache keeps them."""
        c = self._model.config
        keys, values = [], []
        for at in range(position + 1):
            here = _Here(self._captures[at], layer, at, [])
            k, qkv = here["k_post_rope"], here["qkv_matmul"]
            if k is None or qkv is None:
                return None
            keys.append(k)
            values.append(self._split(qkv)[2])
        shape = (position + 1, c.kv_heads, c.head_dim)
        kept = [np.stack(rows).reshape(shape) for rows in (keys, values)]
        if self._cache == "f16":
            kept = [rows.astype(np.float16).astype(np.float64) for rows in kept]
        return kept[0], kept[1]

    def _shares(self, layer: int, normed: Floats, ids: list[int]) -> tuple[Floats, Floats]:
        """Router weights of the chosen; an error d in a logit moves a weight by 2 d, relative."""
        terms = matrix(self._model.layer(layer, "ffn_gate_inp"))[ids] * normed
        logits = terms.sum(-1)
        powers = np.exp(logits - logits.max())
        truth = powers / powers.sum()
        reach = 2 * sum_limit(terms).max()
        return truth, truth * (reach + (ELEMENTARY + np.ptp(logits)) * UNIT)

    def _operands(self, here: _Here, residual: Residual) -> tuple[Floats, Floats]:
        """What a product read and what it wrote."""
        c = self._model.config
        source = _READ_FROM[residual.step]
        x, got = here[source], here[residual.step]
        if x is None or got is None or residual.tensor is None:
            raise KeyError(f"{residual.step} at {residual.place} was not captured")
        if residual.expert is not None:
            ids = self._captures[here.position]["moe_router_indices", here.layer]
            slot = [int(i) for i in ids].index(residual.expert)
            got = got.reshape(c.top_k, -1)[slot].reshape(-1)
            if residual.step == "ffn_out":
                x = x.reshape(c.top_k, -1)[slot].reshape(-1)
        elif residual.step == "qkv_matmul":
            short = residual.tensor.split(".")[-2]
            got = self._split(got)[("attn_q", "attn_k", "attn_v").index(short)]
        return x, got


class _Here:
    """The stages of one place, and the residuals found there."""

    def __init__(self, capture: Capture, layer: int, position: int, found: list[Residual]) -> None:
        self._capture, self.layer, self.position, self._found = capture, layer, position, found

    def __getitem__(self, stage: str) -> Floats | None:
        key = (stage, None if stage in ("final_norm", "lm_head") else self.layer)
        return self._capture[key].astype(np.float64) if key in self._capture else None

    def note(self, step: str, got: Floats, truth: Floats, limit: Floats) -> None:
        """Keep a step's residual; of what was handed nothing finite nothing can be said."""
        if not np.isfinite(truth).any():
            return
        error, allowed, _ = _apart(got.reshape(truth.shape), truth, limit)
        half = error <= HALF * allowed
        self._found.append(Residual(step, self.layer, self.position, error, allowed, half))

    def product(
        self, step: str, tensor: Tensor, expert: int | None, x: Floats, got: Floats
    ) -> None:
        """Keep a product's residual, from activations as they are and rounded."""
        if not np.isfinite(x).all():
            return
        weights = matrix(tensor, expert)
        error, limit, worst = _apart(got, *_multiply(weights, x))
        rounded = rounded_limit = None
        half = worst <= HALF
        if (vectors := _rounded(x, tensor)) is not None:
            truth, allowed = _multiply(weights, vectors)
            allowed = allowed + _half_way(weights, x, vectors)
            rounded, rounded_limit, worst = _apart(got, truth, allowed)
            half = half or worst <= HALF
        self._found.append(
            Residual(
                step,
                self.layer,
                self.position,
                error,
                limit,
                half,
                tensor.name,
                expert,
                rounded,
                rounded_limit,
            )
        )

    def sum(self, step: str, a: Floats | None, b: Floats | None) -> None:
        """Keep the residual of a sum of two stages."""
        got = self[step]
        if a is not None and b is not None and got is not None:
            # The second may be rounded when it is written, and the sum taken of more of it.
            self.note(step, got, a + b, 4 * UNIT * (np.abs(a) + np.abs(b)))


def _apart(got: Floats, truth: Floats, limit: Floats) -> tuple[float, float, float]:
    """Relative error and limit (l2), and the largest error of a row in limits of its own.

    Rows that are no number on both sides are the same; on one side they are infinitely apart.
    """
    nowhere = ~np.isfinite(truth)
    if (np.isfinite(got) == nowhere).any() or nowhere.all():
        return np.inf, 0.0, np.inf
    got, truth, limit = (np.where(nowhere, 0.0, values) for values in (got, truth, limit))
    length = float(np.linalg.norm(truth))
    off = np.abs(got - truth)
    error, allowed = float(np.linalg.norm(off)), float(np.linalg.norm(limit))
    rows = np.divide(off, limit, out=np.where(off > 0, np.inf, 0.0), where=limit > 0)
    if length == 0:
        return (0.0 if error == 0 else np.inf), 0.0, float(rows.max())
    return error / length, allowed / length, float(rows.max())


def _multiply(weights: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Products of rows with a vector, and their float32 limits; some rows at a time."""
    step = max(1, (1 << 24) // weights.shape[-1])
    truth, limit = np.empty(len(weights)), np.empty(len(weights))
    for start in range(0, len(weights), step):
        terms = weights[start : start + step] * x
        truth[start : start + step] = terms.sum(-1)
        limit[start : start + step] = sum_limit(terms)
    return truth, limit


def _rounded(x: Floats, tensor: Tensor) -> Floats | None:
    if not tensor.format.is_k_quant or not np.isfinite(x).all():
        return None
    return rounded_activations(x, tensor.format)


def _half_way(weights: Floats, x: Floats, rounded: Floats) -> Floats:
    """What values near the middle of two quants may add: float32 may round them the other way."""
    groups = x.reshape(-1, 256)
    scale = np.abs(groups).max(-1, keepdims=True) / 127
    quants = groups / np.where(scale > 0, scale, 1.0)
    near = np.abs(np.abs(quants - np.floor(quants)) - 0.5) < 4 * 127 * UNIT
    step = np.where(near, scale, 0.0).reshape(rounded.shape)
    return np.asarray(np.abs(weights[:, step > 0]) @ step[step > 0])


def _rotated(heads: Floats, limit: Floats, position: int, base: float) -> tuple[Floats, Floats]:
    """RoPE of ``[heads, head_dim]`` (NeoX pairing), and how far float32 may be off."""
    half = heads.shape[-1] // 2
    angle = position * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    low, high = heads[:, :half], heads[:, half:]
    truth = np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
    a, b = limit[:, :half], limit[:, half:]
    turned = np.concatenate([a * abs(cos) + b * abs(sin), b * abs(cos) + a * abs(sin)], -1)
    size = np.hypot(low, high)
    # Cosine and sine are rounded, their products and the sum.
    return truth, turned + ELEMENTARY * UNIT * np.concatenate([size, size], -1)


def _attended(q: Floats, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Attention of ``[heads, head_dim]`` over ``[positions, kv_heads, head_dim]``."""
    share = len(q) // keys.shape[1]
    k, v = (np.repeat(cached, share, axis=1) for cached in (keys, values))
    terms = q * k * q.shape[-1] ** -0.5
    scores = terms.sum(-1)  # [positions, heads]
    powers = np.exp(scores - scores.max(0))
    weights = powers / powers.sum(0)
    truth = np.einsum("ph,phd->hd", weights, v)
    spread = np.einsum("ph,phd->hd", weights, np.abs(v))
    # An error d in a score moves a weight by 2 d, relative; then exp, and a sum over positions.
    apart = 2 * (sum_limit(terms) + 2 * UNIT * np.abs(scores)).max(0)
    summed = ELEMENTARY + np.ptp(scores, axis=0) + SURE * len(keys) ** 0.5
    return truth, (apart + summed * UNIT)[:, None] * spread
