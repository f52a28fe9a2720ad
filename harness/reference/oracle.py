"""The oracle: a float64 decoder that dequantises, then multiplies.

It shares no arithmetic with any backend: torch, float64, one operation after the other. Told an
activation format, it rounds activations at the points where a backend of that format does, and
computes the rest in float64.

The forward pass is that of ``transformers``' ``Qwen3MoeForCausalLM``, which the tests hold it
against.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from harness.errors import BadInput, HardwareAbsent
from harness.reference.dequant import dequantise
from harness.reference.product import rounded
from harness.stages import Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from harness.model import Model, Tensor

ACTIVATIONS = ("f32", "q8_k")  # "f32": not rounded at all here
CACHES = ("f32", "f16")

# Dequantised weights that are kept, in values: all of a small model, none of a large one.
_KEPT_VALUES = {"cpu": 64 << 20, "cuda": 3 << 29}
_OUTPUT_ROWS = 16384  # of the output matrix at a time: 151 936 x 2048 in float64 is 2.5 GB
_POSITIONS = 256  # computed at a time
_EXPERTS = 16  # dequantised at a time, where they are not kept
_SCORES = 1 << 26  # of attention at a time


@dataclass(frozen=True)
class Routing:
    """What the oracle's router of one layer saw at one position.

    ``logits`` float64 ``[experts]``; ``x`` the normed hidden state that they come from, float64
    ``[hidden]``; ``weights`` the router matrix, float64 ``[experts, hidden]``; ``chosen`` the
    oracle's own top-k ids, in descending order.
    """

    layer: int
    position: int
    logits: NDArray[np.float64]
    x: NDArray[np.float64]
    weights: NDArray[np.float64]
    chosen: NDArray[np.int64]


class Replay(Protocol):
    """What the oracle takes from a candidate, where rounding alone decides either way."""

    def experts(self, routing: Routing) -> NDArray[np.int64] | None:
        """Which experts to compute, ids in any order; None for the oracle's own choice."""

    def cached(
        self, layer: int, own: NDArray[np.float64], first: int
    ) -> NDArray[np.float64] | None:
        """What a float16 cache keeps: ``[2, positions, kv_heads, head_dim]``, keys and values.

        ``own`` are the oracle's, not yet rounded, of positions from ``first`` on; None to round
        those.
        """


@dataclass(frozen=True)
class Run:
    """Captures by position, and logits, float64 ``[positions, vocab]``."""

    captures: list[Capture]
    logits: NDArray[np.float64]


_NOTHING = Plan(frozenset())


class Oracle:
    """A float64 decoder of one sequence.

    Parameters
    ----------
    model
        The opened model.
    device
        ``cpu`` or ``cuda`` (``cuda:N``).
    activation
        ``f32``: activations are not rounded. ``q8_k``: before a product with a K-quant tensor
        they are rounded to int8 with scale max|x|/127 for each 256.
    capacity
        Positions in the KV cache.
    cache
        ``f32``: keys and values are kept as they are. ``f16``: they are rounded to float16.

    Raises
    ------
    HardwareAbsent
        Where the device is not there.

    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        activation: str = "f32",
        capacity: int = 1024,
        cache: str = "f32",
    ) -> None:
        if cache not in CACHES:
            raise BadInput(f"oracle cache {cache!r}, expected one of {CACHES}")
        if activation not in ACTIVATIONS:
            raise BadInput(f"oracle activation {activation!r}, expected one of {ACTIVATIONS}")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise HardwareAbsent(f"oracle device {device}: torch sees no CUDA GPU; use cpu")
        self.model, self.config, self.capacity = model, model.config, capacity
        self.device = torch.device(device)
        self.activation, self.cache = activation, cache
        self.position = 0
        self._blocks: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._routers: dict[int, NDArray[np.float64]] = {}
        self._room = _KEPT_VALUES[self.device.type]
        c = self.config
        shape = (c.layers, 0, c.kv_heads, c.head_dim)
        kept = torch.float16 if cache == "f16" else torch.float64
        # Keys, then values: [layers, positions, kv_heads, head_dim].
        self._cache = [torch.zeros(shape, dtype=kept, device=self.device) for _ in range(2)]
        half = torch.arange(c.head_dim // 2, dtype=torch.float64, device=self.device)
        self._frequencies = c.rope_base ** (-2 * half / c.head_dim)

    @property
    def name(self) -> str:
        """``oracle``, with what it rounds behind a colon: activations, the cache."""
        rounds = [] if self.activation == "f32" else [self.activation]
        rounds += [] if self.cache == "f32" else [f"{self.cache} cache"]
        return ":".join(["oracle", *rounds])

    def reset(self) -> None:
        """Forget the sequence."""
        self.position = 0

    def rewind(self, position: int) -> None:
        """Go back to an earlier position; the cache before it stays as it is."""
        if not 0 <= position <= self.position:
            raise ValueError(f"position {position} is not behind {self.position}")
        self.position = position

    def close(self) -> None:
        """Give its memory back, on a GPU too: peak memory is measured without the oracle."""
        self._blocks.clear()
        self._kept.clear()
        self._cache = []
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - public only through a cudaGraph test
            torch.cuda.empty_cache()

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the cache from position 0: ``[layers, positions, kv_heads, head_dim]``."""
        with _memory_in_words(self.device):
            self._reserve(keys.shape[1])
            for cache, filled in zip(self._cache, (keys, values), strict=True):
                for layer in range(self.config.layers):  # one at a time: a long cache is gigabytes
                    of_layer = torch.from_numpy(np.ascontiguousarray(filled[layer]))
                    cache[layer, : keys.shape[1]] = of_layer.to(self.device).to(cache.dtype)
        self.position = keys.shape[1]

    def run(
        self,
        ids: Sequence[int],
        plan: Plan = _NOTHING,
        forced: NDArray[np.floating] | None = None,
        replay: Replay | None = None,
    ) -> Run:
        """Decode tokens at the next positions, layer by layer over all of them.

        Parameters
        ----------
        ids
            The tokens.
        plan
            Stages to capture.
        forced
            ``[positions, layers, hidden]``: replaces each layer's input.
        replay
            May replace experts and cached values; the consequences flow on.

        Raises
        ------
        BadInput
            For an id outside the vocabulary or a full cache.

        """
        for token in ids:
            if not 0 <= token < self.config.vocab:
                raise BadInput(f"token {token} is outside the vocabulary of {self.config.vocab}")
        if self.position + len(ids) > self.capacity:
            raise BadInput(f"the cache is full at {self.capacity} positions; ask for a larger one")
        captures = [Capture(plan) for _ in ids]
        logits = np.empty((len(ids), self.config.vocab))
        with _memory_in_words(self.device):
            self._reserve(self.position + len(ids))
            for start in range(0, len(ids), _POSITIONS):
                part = slice(start, start + _POSITIONS)
                inputs = None if forced is None else forced[part]
                logits[part] = self._run(ids[part], _Seer(captures[part]), inputs, replay)
                self.position += len(ids[part])
        return Run(captures, logits)

    def _run(
        self,
        ids: Sequence[int],
        see: _Seer,
        forced: NDArray[np.floating] | None,
        replay: Replay | None,
    ) -> NDArray[np.float64]:
        x = self._rows("token_embd.weight", list(ids))
        for layer in range(self.config.layers):
            if forced is not None:
                x = torch.from_numpy(forced[:, layer].astype(np.float64)).to(self.device)
            see("embedding", layer, x)
            x = x + self._attention(layer, x, see, replay)
            see("post_attn_residual", layer, x)
            x = x + self._experts(layer, x, see, replay)
            see("post_ffn_residual", layer, x)
        x = self._norm(x, "output_norm.weight")
        see("final_norm", None, x)
        logits = self._output(x)
        see("lm_head", None, logits)
        return np.asarray(logits.cpu().numpy())

    def moe(
        self, layer: int, residual: NDArray[np.float64], experts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute what the layer's experts would have given.

        For the residual ``[hidden]`` after attention and the given ids ``[k]``: their
        renormalised weights ``[k]``, in the order given, and ``moe_ffn_out`` ``[hidden]``.
        """
        x = torch.from_numpy(np.asarray(residual, dtype=np.float64)[None]).to(self.device)
        h = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        logits = self._product(f"blk.{layer}.ffn_gate_inp.weight", h)
        ids = torch.from_numpy(experts[None]).to(self.device)
        weights = _renormalised(logits, ids)
        out = self._mix(layer, h, ids, weights, _Seer([]))
        return weights[0].cpu().numpy(), out[0].cpu().numpy()

    # -- one layer; everything has the positions in front --------------------------------------

    def _attention(
        self, layer: int, x: torch.Tensor, see: _Seer, replay: Replay | None
    ) -> torch.Tensor:
        c, count = self.config, len(x)
        h = self._norm(x, f"blk.{layer}.attn_norm.weight")
        see("attn_norm", layer, h)
        q, k, v = (self._product(f"blk.{layer}.attn_{part}.weight", h) for part in "qkv")
        see("qkv_matmul", layer, torch.cat([q, k, v], -1))
        q = self._norm(q.view(count, c.heads, c.head_dim), f"blk.{layer}.attn_q_norm.weight")
        k = self._norm(k.view(count, c.kv_heads, c.head_dim), f"blk.{layer}.attn_k_norm.weight")
        q, k = self._rope(q), self._rope(k)
        see("q_post_rope", layer, q)
        see("k_post_rope", layer, k)
        self._keep(layer, torch.stack([k, v.view(k.shape)]), replay)
        mixed = self._attend(layer, q, see)
        see("attention", layer, mixed)
        out = self._product(f"blk.{layer}.attn_output.weight", mixed)
        see("attn_out", layer, out)
        return out

    def _keep(self, layer: int, own: torch.Tensor, replay: Replay | None) -> None:
        """Write keys and values ``[2, positions, kv_heads, head_dim]`` to the cache."""
        kept = own
        if self.cache == "f16":
            exact = own.cpu().numpy()
            given = None if replay is None else replay.cached(layer, exact, self.position)
            # By numpy: torch goes from float64 to float16 over float32, and so rounds twice.
            halves = (exact if given is None else given).astype(np.float16)
            kept = torch.from_numpy(halves).to(self.device)
        place = slice(self.position, self.position + own.shape[1])
        for cache, values in zip(self._cache, kept, strict=True):
            cache[layer, place] = values

    def _attend(self, layer: int, q: torch.Tensor, see: _Seer) -> torch.Tensor:
        """Causal attention of ``[positions, heads, head_dim]``; ``[positions, q_width]``."""
        c, end = self.config, self.position + len(q)
        keys, values = (cache[layer, :end].to(torch.float64) for cache in self._cache)
        at = torch.arange(end, device=self.device)
        mixed = []
        step = max(1, _SCORES // (c.heads * end))
        for start in range(0, len(q), step):
            some = q[start : start + step]
            grouped = some.view(len(some), c.kv_heads, c.heads // c.kv_heads, c.head_dim)
            scores = torch.einsum("nhgd,phd->nhgp", grouped, keys) / c.head_dim**0.5
            own = self.position + start + torch.arange(len(some), device=self.device)
            scores.masked_fill_((at > own[:, None])[:, None, None], -math.inf)
            probabilities = torch.softmax(scores, -1)
            see.of_seen("attn_scores", layer, scores, start, self.position)
            see.of_seen("attn_softmax", layer, probabilities, start, self.position)
            mixed.append(torch.einsum("nhgp,phd->nhgd", probabilities, values).flatten(1))
        return torch.cat(mixed)

    def _rope(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotate pairs (i, i + head_dim/2) of ``[positions, heads, head_dim]`` (NeoX)."""
        at = self.position + torch.arange(len(heads), dtype=torch.float64, device=self.device)
        angle = (at[:, None] * self._frequencies)[:, None]
        cos, sin = torch.cos(angle), torch.sin(angle)
        low, high = heads.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def _experts(
        self, layer: int, x: torch.Tensor, see: _Seer, replay: Replay | None
    ) -> torch.Tensor:
        h = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        see("ffn_norm", layer, h)
        logits = self._product(f"blk.{layer}.ffn_gate_inp.weight", h)
        # A stable sort puts the lower index first among equals.
        ids = torch.sort(logits, descending=True, stable=True).indices[:, : self.config.top_k]
        if replay is not None:
            ids = self._replayed(layer, h, logits, ids, replay)
        weights = _renormalised(logits, ids)
        see("moe_router", layer, weights)
        see("moe_router_indices", layer, ids.to(torch.int32))
        out = self._mix(layer, h, ids, weights, see)
        see("moe_ffn_out", layer, out)
        return out

    def _replayed(
        self,
        layer: int,
        h: torch.Tensor,
        logits: torch.Tensor,
        ids: torch.Tensor,
        replay: Replay,
    ) -> torch.Tensor:
        """Ids ``[positions, k]`` with those that the replay gives, in descending order."""
        if layer not in self._routers:  # copied off a GPU once, not for every run
            self._routers[layer] = self._rows(f"blk.{layer}.ffn_gate_inp.weight").cpu().numpy()
        shown = [values.cpu().numpy() for values in (logits, h, ids)]
        ids = ids.clone()
        for place, (logit, x, own) in enumerate(zip(*shown, strict=True)):
            position = self.position + place
            given = replay.experts(Routing(layer, position, logit, x, self._routers[layer], own))
            if given is not None:
                order = np.argsort(-logit[given], kind="stable")
                ids[place] = torch.from_numpy(given[order]).to(ids)
        return ids

    def _mix(
        self, layer: int, h: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, see: _Seer
    ) -> torch.Tensor:
        """Sum the chosen experts' down(silu(gate h) * up h), weighted."""
        each = h[:, None].expand(-1, ids.shape[1], -1)
        gate = self._expert_products(f"blk.{layer}.ffn_gate_exps.weight", ids, each)
        up = self._expert_products(f"blk.{layer}.ffn_up_exps.weight", ids, each)
        silu = gate * torch.sigmoid(gate)
        down = self._expert_products(f"blk.{layer}.ffn_down_exps.weight", ids, silu * up)
        for name, values in (
            ("ffn_gate", gate),
            ("ffn_up", up),
            ("ffn_silu", silu),
            ("ffn_swigl", silu * up),
            ("ffn_out", down),
        ):
            see(name, layer, values)
        return torch.einsum("nk,nkd->nd", weights, down)

    # -- products ----------------------------------------------------------------------------

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_eps)
        return x * scale * self._rows(name)

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._rounded(x, self.model[name]) @ self._rows(name).T

    def _expert_products(self, name: str, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Multiply each chosen expert's matrix with its vector.

        ids ``[positions, k]``, x ``[positions, k, columns]``; ``[positions, k, rows]``.
        """
        tensor = self.model[name]
        vectors = self._rounded(x, tensor).flatten(0, 1)
        # Sorted by expert, so that every matrix is dequantised once and multiplies all of its own.
        chosen, order = torch.sort(ids.flatten(), stable=True)
        experts, counts = torch.unique_consecutive(chosen, return_counts=True)
        vectors, ends = vectors[order], counts.cumsum(0).tolist()
        out = vectors.new_empty(len(vectors), tensor.shape[1])
        start = 0
        for matrix, end in zip(self._matrices(tensor, experts), ends, strict=True):
            out[order[start:end]] = vectors[start:end] @ matrix.T
            start = end
        return out.view(*ids.shape, -1)

    def _matrices(self, tensor: Tensor, experts: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each expert's matrix ``[rows, columns]``."""
        all_layers = 3 * self.config.layers * math.prod(tensor.shape)
        if all_layers <= _KEPT_VALUES[self.device.type] // 2:
            yield from (self._rows(tensor.name)[expert] for expert in experts.tolist())
            return
        for start in range(0, len(experts), _EXPERTS):
            some = experts[start : start + _EXPERTS]
            yield from dequantise(self._raw(tensor)[some], tensor.format)

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        tensor = self.model.output
        x = self._rounded(x, tensor)
        if tensor.shape[0] * tensor.shape[1] <= self._room or tensor.name in self._kept:
            return x @ self._rows(tensor.name).T
        raw = self._raw(tensor)
        pieces = [
            x @ dequantise(raw[start : start + _OUTPUT_ROWS], tensor.format).T
            for start in range(0, tensor.shape[0], _OUTPUT_ROWS)
        ]
        return torch.cat(pieces, -1)

    def _rounded(self, x: torch.Tensor, tensor: Tensor) -> torch.Tensor:
        return rounded(x, tensor.format, self.activation)

    def _raw(self, tensor: Tensor) -> torch.Tensor:
        """Return the tensor's bytes on the device (uploaded once; a view of the map on CPU)."""
        if tensor.name not in self._blocks:
            with warnings.catch_warnings():
                # torch warns that the map is read-only; nothing here writes to it.
                warnings.filterwarnings("ignore", message=".*not writable.*")
                self._blocks[tensor.name] = torch.from_numpy(tensor.blocks).to(self.device)
        return self._blocks[tensor.name]

    def _rows(self, name: str, rows: list[int] | None = None) -> torch.Tensor:
        """Dequantise a tensor (kept while there is room), or some rows of it."""
        if name in self._kept:
            return self._kept[name] if rows is None else self._kept[name][rows]
        tensor = self.model[name]
        raw = self._raw(tensor)
        if rows is not None:
            return dequantise(raw[rows], tensor.format)
        values = dequantise(raw, tensor.format)
        if values.numel() <= self._room:
            self._room -= values.numel()
            self._kept[name] = values
        return values

    def _reserve(self, positions: int) -> None:
        """Grow the cache: a whole context of float64 would be gigabytes that few runs need."""
        have = self._cache[0].shape[1]
        if positions <= have:
            return
        if positions > self.capacity:
            raise BadInput(f"{positions} positions do not fit the cache of {self.capacity}")
        grown = min(self.capacity, max(positions, 2 * have, 64))
        for index, old in enumerate(self._cache):
            # NaN, so that a position that was never written cannot pass unseen.
            shape = (old.shape[0], grown, *old.shape[2:])
            new = torch.full(shape, math.nan, dtype=old.dtype, device=self.device)
            new[:, :have] = old
            self._cache[index] = new


@contextmanager
def _memory_in_words(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        raise BadInput(
            f"out of GPU memory in the oracle: {free / 1e9:.2f} of {total / 1e9:.2f} GB are free, "
            "and it holds the weights once more; free some, or set MOE_HARNESS_ORACLE=cpu"
        ) from None


def _renormalised(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Softmax over all experts, of the chosen ``[positions, k]`` alone, to sum 1."""
    weights = torch.softmax(logits, -1).gather(-1, ids)
    return weights / weights.sum(-1, keepdim=True)


class _Seer:
    """Hands stages to the positions' captures; copies to the host only what they want."""

    def __init__(self, captures: list[Capture]) -> None:
        self._captures = captures

    def __call__(self, stage: str, layer: int | None, values: torch.Tensor) -> None:
        if self._captures and self._captures[0].wants(stage, layer):
            rows = values.detach().cpu().numpy()
            for capture, row in zip(self._captures, rows, strict=True):
                capture.put(stage, layer, row)

    def of_seen(
        self, stage: str, layer: int, values: torch.Tensor, start: int, before: int
    ) -> None:
        """Likewise ``[positions, ..., cached]`` from ``start`` on, less what lies ahead of each."""
        if self._captures and self._captures[0].wants(stage, layer):
            for place, row in enumerate(values.cpu().numpy(), start):
                self._captures[place].put(stage, layer, row[..., : before + place + 1])
