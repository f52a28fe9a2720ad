"""The CPU decoder: the ``qwen3moe`` forward pass of FACTS, one position at a time."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.backends.cpu.faults import planted
from harness.backends.cpu.products import (
    Activations,
    Batch,
    Matrix,
    attention_scores,
    default_threads,
    most_threads,
    using_threads,
)
from harness.backends.cpu.vectors import mix_in_parallel, mix_in_turn, rms_norm, rotate
from harness.decoder import Decisions, check_filling, check_rewind, check_step
from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.model import Config, Model
    from harness.numerics import Numerics
    from harness.stages import Capture

    Floats = NDArray[np.float32]

# Values of the cache below which the heads' mixing is not worth waking the other threads.
_SERIAL_MIX = 32 << 10


class CpuDecoder:
    """A decoder of one sequence on the CPU (``harness.decoder.Decoder``).

    Weights are read from the map at each step and never copied; the KV cache is float32,
    ``[layers, capacity, kv_heads, head_dim]``, its values rounded to float16 where the numerics
    keeps it so. Results do not depend on the number of threads, on what is captured, or on what
    the cache held before ``reset``.

    Not for several Python threads at once: numba's fallback threading layer cannot bear it.

    Parameters
    ----------
    model
        The opened model.
    numerics
        Its ``activation`` is ``f32`` or ``q8_k``; its ``accumulator`` must be ``quad``.
    capacity
        Positions in the KV cache.
    plant
        A fault to plant (``PLANTS``), None for none.
    threads
        At most numba's; None: as many as there are.

    Raises
    ------
    BadInput
        For a numerics that this backend does not have, or a capacity or threads below 1.
    KeyError
        For an unknown fault.

    """

    backend = "cpu"
    decisions: Decisions | None = None  # ``harness.decoder.Instructed``

    def __init__(
        self,
        model: Model,
        numerics: Numerics,
        capacity: int,
        plant: str | None = None,
        threads: int | None = None,
    ) -> None:
        if numerics.activation not in ("f32", "q8_k") or numerics.accumulator != "quad":
            raise BadInput(f"the cpu backend has no numerics {numerics.name}; use f32 or q8_k")
        if capacity < 1:
            raise BadInput(f"a cache of {capacity} positions, expected at least 1")
        if threads is not None and not 1 <= threads <= most_threads():
            raise BadInput(f"{threads} threads, expected 1 to {most_threads()}")
        self.model, self.numerics, self.capacity = model, numerics, capacity
        self.device, self.device_id = cpu_name(), "cpu"
        self.threads = threads or default_threads()
        self.position = 0
        self._plant, self._decide = plant, planted(plant)
        self._before: Floats | None = None

        c, rounds = model.config, numerics.activation == "q8_k"
        # NaN, so that a position that was never written cannot pass unseen.
        shape = (c.layers, capacity, c.kv_heads, c.head_dim)
        self._keys = np.full(shape, np.nan, dtype=np.float32)
        self._values = np.full(shape, np.nan, dtype=np.float32)
        self.cache_bytes = self._keys.nbytes + self._values.nbytes
        self._layers = [_Layer.of(model, layer, rounds=rounds) for layer in range(c.layers)]
        self._final_norm = _vector(model, "output_norm.weight")
        self._output = Batch([Matrix.of(model.output, rounds=rounds)])
        self._rotation = _Rotation(c, *self._decide.pairs(c.head_dim))
        # The vectors that products are taken with, by width.
        self._normed = Activations(c.hidden, rounds=rounds)
        self._query = Activations(c.q_width, rounds=False)
        self._mixed = Activations(c.q_width, rounds=rounds)
        self._gated = Activations(c.top_k * c.expert_width, rounds=rounds)

    def reset(self) -> None:
        """Forget the sequence; what the cache still holds is never read."""
        self.position = 0
        self._before = None

    def rewind(self, position: int) -> None:
        """Go back to an earlier position (``harness.decoder.Decoder.rewind``)."""
        check_rewind(self, position)
        self.position = position
        self._before = None

    def step(
        self,
        token: int,
        capture: Capture | None = None,
        forced: NDArray[np.float32] | None = None,
    ) -> Floats:
        """Decode one token at the next position (``harness.decoder.Decoder.step``)."""
        check_step(self, token, forced)
        # What overflows or is not a number is the guard's to find, not a warning's.
        with using_threads(self.threads), np.errstate(all="ignore"):
            return self._step(token, _Seer(capture), forced)

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Decode ``prompt`` and then ``count`` tokens greedily, from the present position on.

        The last of them is not decoded itself: ``len(prompt) + count - 1`` positions are used.
        """
        if not prompt:
            raise BadInput("the prompt is empty; give at least one token")
        for token in prompt:
            logits = self.step(token)
        tokens: list[int] = []
        while len(tokens) < count:
            if tokens:
                logits = self.step(tokens[-1])
            tokens.append(int(np.argmax(logits)))  # the first of equals, which is the lower id
        return tokens

    def fill_cache(self, keys: Floats, values: Floats) -> None:
        """Fill the cache from position 0 (``harness.decoder.Decoder.fill_cache``)."""
        check_filling(self, keys, values)
        positions = keys.shape[1]
        for layer in range(keys.shape[0]):
            kept = (keys[layer], values[layer])
            if self.numerics.cache == "f16":
                kept = (kept[0].astype(np.float16), kept[1].astype(np.float16))
            self._keys[layer, :positions], self._values[layer, :positions] = kept
        self.position = positions
        self._before = None

    def sibling(self, capacity: int) -> CpuDecoder:
        """Open another decoder of the same model (``harness.decoder.Decoder.sibling``)."""
        return CpuDecoder(self.model, self.numerics, capacity, self._plant, self.threads)

    def ran(self) -> dict[str, object]:
        """Say what computes."""
        return {
            "backend": self.backend,
            "device": self.device,
            "threads": self.threads,
            "numerics": self.numerics.name,
            "source_hash": source_hash(),
        }

    def close(self) -> None:
        """Let go of the cache and of the weights."""
        self._layers = []
        self._keys = self._values = np.empty((0, 0, 0, 0), dtype=np.float32)

    # -- one position ------------------------------------------------------------------------

    def _step(self, token: int, see: _Seer, forced: NDArray[np.float32] | None) -> Floats:
        self._rotation.turn_to(self.position, self._decide.query_shift)
        if forced is None:
            x = self.model["token_embd.weight"].values(token)
        for layer, weights in enumerate(self._layers):
            if forced is not None:
                x = np.ascontiguousarray(forced[layer], dtype=np.float32)
            see("embedding", layer, x)
            x = x + self._attention(layer, weights, x, see)
            see("post_attn_residual", layer, x)
            x = x + self._experts(layer, weights, x, see)
            see("post_ffn_residual", layer, x)
        final = self._norm(x, self._final_norm)
        see("final_norm", None, final)
        self._normed.load(final)
        true = self._product(self._output, self._normed)
        logits = self._decide.logits(true, self._before)
        self._before = true.copy()
        see("lm_head", None, logits)
        self.position += 1
        return logits

    def _attention(self, layer: int, weights: _Layer, x: Floats, see: _Seer) -> Floats:
        c, at = self.model.config, self.position
        normed = self._norm(x, weights.attn_norm)
        see("attn_norm", layer, normed)
        self._normed.load(normed)
        qkv = self._product(weights.qkv, self._normed)
        see("qkv_matmul", layer, qkv)
        heads = qkv.reshape(-1, c.head_dim)
        q, k, v = np.split(heads, [c.heads, c.heads + c.kv_heads])
        if self._decide.qk_norm:
            rms_norm(q, weights.q_norm, c.rms_eps, q)
            rms_norm(k, weights.k_norm, c.rms_eps, k)
        self._rotation.apply(q, k)
        see("q_post_rope", layer, q)
        see("k_post_rope", layer, k)
        keys, values = self._keys[layer], self._values[layer]
        if self._decide.writes_cache(at):
            keys[at], values[at] = self._kept(layer, k, v)
        else:
            keys[at], values[at] = keys[at - 1], values[at - 1]
        mixed = self._attend(layer, q, see)
        see("attention", layer, mixed)
        self._mixed.load(mixed)
        out = self._product(weights.output, self._mixed)
        out = self._decide.attention_out(out, self.model.layer(layer, "attn_output"), mixed)
        see("attn_out", layer, out)
        return out

    def _kept(
        self, layer: int, k: Floats, v: Floats
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Keys and values ``[kv_heads, head_dim]`` as the cache keeps them."""
        if self.numerics.cache == "f32":
            return k, v
        own = np.stack([k, v])
        given = None if self.decisions is None else self.decisions.cached(layer, own)
        keys, values = (own if given is None else given).astype(np.float16)
        return keys, values

    def _attend(self, layer: int, q: Floats, see: _Seer) -> Floats:
        """Mix the values of all positions so far: float32 ``[heads, head_dim]``."""
        c, positions = self.model.config, self.position + 1
        self._query.load(q)
        keys, values = self._keys[layer], self._values[layer]
        scores = attention_scores(self._query, keys, positions, c.heads, self.threads)
        scores *= np.float32(c.head_dim**-0.5)
        see("attn_scores", layer, scores)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        see("attn_softmax", layer, weights)
        mixed = np.empty_like(q)
        few = self.threads == 1 or weights.size * c.head_dim < _SERIAL_MIX
        (mix_in_turn if few else mix_in_parallel)(weights, values, mixed)
        return mixed

    def _experts(self, layer: int, weights: _Layer, x: Floats, see: _Seer) -> Floats:
        normed = self._norm(x, weights.ffn_norm)
        see("ffn_norm", layer, normed)
        self._normed.load(normed)
        chosen, share = self._route(layer, self._product(weights.router, self._normed), normed)
        see("moe_router", layer, share)
        see("moe_router_indices", layer, chosen.astype(np.int32))
        down = self._expert_outputs(layer, weights, chosen, see)
        out = self._decide.summed(self._decide.mixed(share), down)
        out = self._decide.moe_out(
            out, self.position, last_layer=layer == self.model.config.layers - 1
        )
        see("moe_ffn_out", layer, out)
        return out

    def _route(
        self, layer: int, logits: Floats, normed: Floats
    ) -> tuple[NDArray[np.int64], Floats]:
        """Choose experts by their logits: ids and weights ``[top_k]``, best first."""
        # A stable sort puts the lower index first among equals.
        ranked = np.argsort(-logits, kind="stable")
        chosen = self._decide.choose(ranked, self.model.config.top_k)
        told = None if self.decisions is None else self.decisions.experts(layer, normed, chosen)
        if told is not None:
            chosen = told[np.argsort(-logits[told], kind="stable")]
        shifted = logits.astype(np.float64)
        shifted -= shifted[ranked[0]]
        probabilities = np.exp(shifted)
        probabilities /= probabilities.sum()
        return chosen, self._decide.weigh(probabilities[chosen]).astype(np.float32)

    def _expert_outputs(
        self, layer: int, weights: _Layer, chosen: NDArray[np.int64], see: _Seer
    ) -> Floats:
        """down(silu(gate x) * up x) of each chosen expert: float32 ``[top_k, hidden]``."""
        c = self.model.config
        experts = self._decide.computed(chosen, c.experts)
        weights.gate_up.choose(np.concatenate([experts, experts]))
        weights.down.choose(experts)
        both = self._product(weights.gate_up, self._normed)
        gate, up = both.reshape(2, c.top_k, c.expert_width)
        see("ffn_gate", layer, gate)
        see("ffn_up", layer, up)
        curved, straight = (up, gate) if self._decide.silu_on_up else (gate, up)
        silu = self._decide.silu(curved)
        see("ffn_silu", layer, silu)
        gated = silu * straight
        see("ffn_swigl", layer, gated)
        self._gated.load(gated)
        down = self._product(weights.down, self._gated).reshape(c.top_k, c.hidden)
        see("ffn_out", layer, down)
        return down

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        out = np.empty_like(x)
        rms_norm(x.reshape(1, -1), weight, self.model.config.rms_eps, out.reshape(1, -1))
        return out

    def _product(self, batch: Batch, x: Activations) -> Floats:
        out = np.empty(batch.rows, dtype=np.float32)
        batch.run(x, out, self.threads)
        return out


@dataclass(frozen=True)
class _Layer:
    """One layer's norms, and its matrices in batches that share an input."""

    attn_norm: Floats
    qkv: Batch
    q_norm: Floats
    k_norm: Floats
    output: Batch
    ffn_norm: Floats
    router: Batch
    gate_up: Batch  # top_k gates, then top_k ups
    down: Batch

    @classmethod
    def of(cls, model: Model, layer: int, *, rounds: bool) -> _Layer:
        def matrix(short: str) -> Matrix:
            return Matrix.of(model.layer(layer, short), rounds=rounds)

        def vector(short: str) -> Floats:
            return _vector(model, f"blk.{layer}.{short}.weight")

        k, width = model.config.top_k, model.config.expert_width
        return cls(
            attn_norm=vector("attn_norm"),
            qkv=Batch([matrix("attn_q"), matrix("attn_k"), matrix("attn_v")]),
            q_norm=vector("attn_q_norm"),
            k_norm=vector("attn_k_norm"),
            output=Batch([matrix("attn_output")]),
            ffn_norm=vector("ffn_norm"),
            router=Batch([matrix("ffn_gate_inp")]),
            gate_up=Batch([matrix("ffn_gate_exps")] * k + [matrix("ffn_up_exps")] * k),
            down=Batch([matrix("ffn_down_exps")] * k, inputs=[i * width for i in range(k)]),
        )


class _Rotation:
    """RoPE of the present position: angles in float64, their cosines and sines in float32."""

    def __init__(self, config: Config, low: NDArray[np.int64], high: NDArray[np.int64]) -> None:
        half = np.arange(config.head_dim // 2, dtype=np.float64)
        self._frequencies = config.rope_base ** (-2 * half / config.head_dim)
        self._low, self._high = low, high

    def turn_to(self, position: int, query_shift: int) -> None:
        self._key = self._angles(position)
        self._query = self._angles(position + query_shift)

    def apply(self, q: Floats, k: Floats) -> None:
        """Rotate queries and keys ``[heads, head_dim]`` in place."""
        rotate(q, self._low, self._high, *self._query)
        rotate(k, self._low, self._high, *self._key)

    def _angles(self, position: int) -> tuple[Floats, Floats]:
        angle = position * self._frequencies
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class _Seer:
    """Hands stages to a capture, where there is one."""

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture

    def __call__(self, stage: str, layer: int | None, values: NDArray[np.generic]) -> None:
        if self._capture is not None:
            self._capture.put(stage, layer, values)


def _vector(model: Model, name: str) -> Floats:
    """A norm's weights, copied: float32, contiguous, writable, the one kind the kernels take."""
    return np.array(model[name].values(), dtype=np.float32)


@cache
def cpu_name() -> str:
    """Model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


@cache
def source_hash() -> str:
    """``sha256:`` of this backend's source files, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name}\n".encode())
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"
