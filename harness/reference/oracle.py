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
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from harness.errors import BadInput, HardwareAbsent
from harness.reference.dequant import dequantise
from harness.reference.product import rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from harness.model import Model, Tensor
    from harness.stages import Capture

ACTIVATIONS = ("f32", "q8_k")  # "f32": not rounded at all here
CACHES = ("f32", "f16")

# Dequantised weights that are kept, in values: all of a small model, none of a large one.
_KEPT_VALUES = {"cpu": 64 << 20, "cuda": 3 << 29}
_OUTPUT_ROWS = 16384  # of the output matrix at a time: 151 936 x 2048 in float64 is 2.5 GB


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


# Decides which experts the oracle computes: ids in any order, or None for its own choice.
Choose: TypeAlias = "Callable[[Routing], NDArray[np.int64] | None]"


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
        self._keys = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._values = torch.zeros_like(self._keys)
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

    def close(self) -> None:
        """Give its memory back, on a GPU too: peak memory is measured without the oracle."""
        self._blocks.clear()
        self._kept.clear()
        self._keys = self._values = torch.empty(0)
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - public only through a cudaGraph test
            torch.cuda.empty_cache()

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the cache from position 0: ``[layers, positions, kv_heads, head_dim]``."""
        self._reserve(keys.shape[1])
        for cache, filled in ((self._keys, keys), (self._values, values)):
            for layer in range(self.config.layers):  # one at a time: a long cache is gigabytes
                values_of = torch.from_numpy(np.ascontiguousarray(filled[layer])).to(self.device)
                cache[layer, : keys.shape[1]] = self._kept_as(values_of)
        self.position = keys.shape[1]

    def step(
        self,
        token: int,
        capture: Capture | None = None,
        forced: NDArray[np.floating] | None = None,
        choose: Choose | None = None,
    ) -> NDArray[np.float64]:
        """Decode one token at the next position; logits, float64 ``[vocab]``.

        ``forced`` (``[layers, hidden]``) replaces each layer's input; ``choose`` may replace the
        experts of a layer (routing replay): the oracle then takes those, with its own weights.
        """
        if not 0 <= token < self.config.vocab:
            raise BadInput(f"token {token} is outside the vocabulary of {self.config.vocab}")
        if self.position >= self.capacity:
            raise BadInput(f"the cache is full at {self.capacity} positions; ask for a larger one")
        self._reserve(self.position + 1)
        see = _Seer(capture)
        x = self._rows("token_embd.weight", token)
        for layer in range(self.config.layers):
            if forced is not None:
                x = torch.from_numpy(np.asarray(forced[layer], dtype=np.float64)).to(self.device)
            see("embedding", layer, x)
            x = x + self._attention(layer, x, see)
            see("post_attn_residual", layer, x)
            x = x + self._experts(layer, x, see, choose)
            see("post_ffn_residual", layer, x)
        x = self._norm(x, "output_norm.weight")
        see("final_norm", None, x)
        logits = self._output(x)
        see("lm_head", None, logits)
        self.position += 1
        return np.asarray(logits.cpu().numpy())

    def moe(
        self, layer: int, residual: NDArray[np.float64], experts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute what the layer's experts would have given.

        For the residual ``[hidden]`` after attention and the given ids ``[k]``: their
        renormalised weights ``[k]``, in the order given, and ``moe_ffn_out`` ``[hidden]``.
        """
        x = torch.from_numpy(np.asarray(residual, dtype=np.float64)).to(self.device)
        h = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        logits = self._product(f"blk.{layer}.ffn_gate_inp.weight", h)
        weights = torch.softmax(logits, 0)[torch.from_numpy(experts).to(self.device)]
        weights = weights / weights.sum()
        out = self._mix(layer, h, experts.tolist(), weights, _Seer(None))
        return weights.cpu().numpy(), out.cpu().numpy()

    # -- one layer ---------------------------------------------------------------------------

    def _attention(self, layer: int, x: torch.Tensor, see: _Seer) -> torch.Tensor:
        c, at = self.config, self.position
        h = self._norm(x, f"blk.{layer}.attn_norm.weight")
        see("attn_norm", layer, h)
        q, k, v = (self._product(f"blk.{layer}.attn_{part}.weight", h) for part in "qkv")
        see("qkv_matmul", layer, torch.cat([q, k, v]))
        q = self._norm(q.view(c.heads, c.head_dim), f"blk.{layer}.attn_q_norm.weight")
        k = self._norm(k.view(c.kv_heads, c.head_dim), f"blk.{layer}.attn_k_norm.weight")
        q, k = self._rope(q), self._rope(k)
        see("q_post_rope", layer, q)
        see("k_post_rope", layer, k)
        self._keys[layer, at] = self._kept_as(k)
        self._values[layer, at] = self._kept_as(v.view(c.kv_heads, c.head_dim))
        grouped = q.view(c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        keys, values = self._keys[layer, : at + 1], self._values[layer, : at + 1]
        scores = torch.einsum("hgd,phd->hgp", grouped, keys) / c.head_dim**0.5
        see("attn_scores", layer, scores)
        probabilities = torch.softmax(scores, -1)
        see("attn_softmax", layer, probabilities)
        mixed = torch.einsum("hgp,phd->hgd", probabilities, values).reshape(-1)
        see("attention", layer, mixed)
        out = self._product(f"blk.{layer}.attn_output.weight", mixed)
        see("attn_out", layer, out)
        return out

    def _kept_as(self, values: torch.Tensor) -> torch.Tensor:
        """Round to what the cache keeps; float64."""
        kept = values.to(torch.float16) if self.cache == "f16" else values
        return kept.to(torch.float64)

    def _rope(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotate pairs (i, i + head_dim/2) of ``[heads, head_dim]`` by the position (NeoX)."""
        angle = self.position * self._frequencies
        cos, sin = torch.cos(angle), torch.sin(angle)
        low, high = heads.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def _experts(
        self, layer: int, x: torch.Tensor, see: _Seer, choose: Choose | None
    ) -> torch.Tensor:
        h = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        see("ffn_norm", layer, h)
        logits = self._product(f"blk.{layer}.ffn_gate_inp.weight", h)
        # A stable sort puts the lower index first among equals.
        ids = torch.sort(logits, descending=True, stable=True).indices[: self.config.top_k]
        if choose is not None:
            ids = self._chosen(layer, h, logits, ids, choose)
        weights = torch.softmax(logits, 0)[ids]
        weights = weights / weights.sum()
        see("moe_router", layer, weights)
        see("moe_router_indices", layer, ids.to(torch.int32))
        out = self._mix(layer, h, ids.tolist(), weights, see)
        see("moe_ffn_out", layer, out)
        return out

    def _chosen(
        self,
        layer: int,
        h: torch.Tensor,
        logits: torch.Tensor,
        ids: torch.Tensor,
        choose: Choose,
    ) -> torch.Tensor:
        if layer not in self._routers:  # copied off a GPU once, not for every position
            self._routers[layer] = self._rows(f"blk.{layer}.ffn_gate_inp.weight").cpu().numpy()
        given = choose(
            Routing(
                layer,
                self.position,
                logits.cpu().numpy(),
                h.cpu().numpy(),
                self._routers[layer],
                ids.cpu().numpy(),
            )
        )
        if given is None:
            return ids
        replayed = torch.from_numpy(np.asarray(given, dtype=np.int64)).to(self.device)
        order = torch.sort(logits[replayed], descending=True, stable=True).indices
        return replayed[order]

    def _mix(
        self, layer: int, h: torch.Tensor, ids: list[int], weights: torch.Tensor, see: _Seer
    ) -> torch.Tensor:
        """Sum the chosen experts' down(silu(gate h) * up h), weighted."""
        each = h.expand(len(ids), -1)
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
        return weights @ down

    # -- products ----------------------------------------------------------------------------

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_eps)
        return x * scale * self._rows(name)

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._rows(name) @ self._rounded(x, self.model[name])

    def _expert_products(self, name: str, ids: list[int], x: torch.Tensor) -> torch.Tensor:
        """Multiply each expert's matrix with its vector: x ``[k, columns]``; ``[k, rows]``."""
        tensor = self.model[name]
        all_layers = 3 * self.config.layers * math.prod(tensor.shape)
        if all_layers <= _KEPT_VALUES[self.device.type] // 2:
            matrices = self._rows(name)[ids]
        else:
            matrices = dequantise(self._raw(tensor)[ids], tensor.format)
        return torch.bmm(matrices, self._rounded(x, tensor)[..., None])[..., 0]

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        tensor = self.model.output
        x = self._rounded(x, tensor)
        if tensor.shape[0] * tensor.shape[1] <= self._room or tensor.name in self._kept:
            return self._rows(tensor.name) @ x
        raw = self._raw(tensor)
        pieces = [
            dequantise(raw[start : start + _OUTPUT_ROWS], tensor.format) @ x
            for start in range(0, tensor.shape[0], _OUTPUT_ROWS)
        ]
        return torch.cat(pieces)

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

    def _rows(self, name: str, row: int | None = None) -> torch.Tensor:
        """Dequantise a tensor (kept while there is room), or one row of it."""
        if name in self._kept:
            return self._kept[name] if row is None else self._kept[name][row]
        tensor = self.model[name]
        raw = self._raw(tensor)
        if row is not None:
            return dequantise(raw[row], tensor.format)
        values = dequantise(raw, tensor.format)
        if values.numel() <= self._room:
            self._room -= values.numel()
            self._kept[name] = values
        return values

    def _reserve(self, positions: int) -> None:
        """Grow the cache: a whole context of float64 would be gigabytes that few runs need."""
        have = self._keys.shape[1]
        if positions <= have:
            return
        if positions > self.capacity:
            raise BadInput(f"{positions} positions do not fit the cache of {self.capacity}")
        grown = min(self.capacity, max(positions, 2 * have, 64))
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            # NaN, so that a position that was never written cannot pass unseen.
            new = torch.full(
                (old.shape[0], grown, *old.shape[2:]),
                float("nan"),
                dtype=torch.float64,
                device=self.device,
            )
            new[:, :have] = old
            setattr(self, name, new)


class _Seer:
    """Hands stages to a capture; copies to the host only what it wants."""

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture

    def __call__(self, stage: str, layer: int | None, values: torch.Tensor) -> None:
        if self._capture is not None and self._capture.wants(stage, layer):
            self._capture.put(stage, layer, values.detach().cpu().numpy())
