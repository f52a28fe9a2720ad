"""The ``qwen3moe`` forward pass that trains and evaluates the embedded model.

Float32 or bf16 torch over a mapping of GGUF tensor names, whole sequences at once, no cache. It is
no oracle and no backend: every expert is computed and those not chosen get weight 0, which one
large matrix product does fastest on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from pathlib import Path

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, in values; ``context`` in tokens."""

    vocabulary: int = 4096
    layers: int = 8
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 16
    top_k: int = 4
    expert_width: int = 256
    context: int = 1024
    rope_base: float = 1e6
    eps: float = 1e-6


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """GGUF names of all tensors and their shapes, rows first, in file order."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, experts, width = shape.hidden, shape.experts, shape.expert_width
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate_inp": (experts, hidden),
        "ffn_gate_exps": (experts, width, hidden),
        "ffn_up_exps": (experts, width, hidden),
        "ffn_down_exps": (experts, hidden, width),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocabulary, hidden)}
    for index in range(shape.layers):
        shapes |= {f"blk.{index}.{name}.weight": size for name, size in layer.items()}
    return shapes | {
        "output_norm.weight": (hidden,),
        "output.weight": (shape.vocabulary, hidden),
    }


def initial_weights(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights to start training from: residual outputs scaled by 1/sqrt(2 * layers)."""
    weights = {}
    for name, size in tensor_shapes(shape).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(size)
            continue
        spread = 0.02 if name.startswith(("token_embd", "output")) else 0.04
        if "attn_output" in name or "ffn_down" in name:
            spread /= math.sqrt(2 * shape.layers)
        weights[name] = torch.randn(size, generator=generator) * spread
    return weights


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * gain over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE, NeoX pairing: value i turns with i + head_dim/2; x ``[..., tokens, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def layer_step(
    shape: Shape, w: dict[str, Tensor], x: Tensor, cosine: Tensor, sine: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on x ``[batch, tokens, hidden]``.

    Returns
    -------
    The new x; the router's probabilities ``[batch, tokens, experts]``; the chosen experts
    ``[batch, tokens, top_k]``.

    """
    batch, tokens, _ = x.shape
    h = rms_norm(x, w["attn_norm"], shape.eps)
    q = functional.linear(h, w["attn_q"]).view(batch, tokens, shape.heads, shape.head_dim)
    k = functional.linear(h, w["attn_k"]).view(batch, tokens, shape.kv_heads, shape.head_dim)
    v = functional.linear(h, w["attn_v"]).view(batch, tokens, shape.kv_heads, shape.head_dim)
    q = rotate(rms_norm(q, w["attn_q_norm"], shape.eps).transpose(1, 2), cosine, sine)
    k = rotate(rms_norm(k, w["attn_k_norm"], shape.eps).transpose(1, 2), cosine, sine)
    shared = shape.heads // shape.kv_heads
    k = k.repeat_interleave(shared, dim=1).to(v.dtype)
    v = v.transpose(1, 2).repeat_interleave(shared, dim=1)
    mixed = functional.scaled_dot_product_attention(q.to(v.dtype), k, v, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
    x = x + functional.dropout(functional.linear(mixed, w["attn_output"]), dropout)

    h = rms_norm(x, w["ffn_norm"], shape.eps)
    with torch.autocast(x.device.type, enabled=False):
        probability = functional.linear(h, w["ffn_gate_inp"].float()).softmax(-1)
    best, chosen = probability.topk(shape.top_k, dim=-1)
    best = best / best.sum(-1, keepdim=True)
    share = torch.zeros_like(probability).scatter(-1, chosen, best)
    gate = functional.linear(h, w["ffn_gate_exps"].flatten(0, 1))
    up = functional.linear(h, w["ffn_up_exps"].flatten(0, 1))
    act = (functional.silu(gate) * up).unflatten(-1, (shape.experts, shape.expert_width))
    act = (act * share.unsqueeze(-1)).to(gate.dtype).flatten(-2)
    down = w["ffn_down_exps"].permute(1, 0, 2).flatten(1)
    return x + functional.dropout(functional.linear(act, down), dropout), probability, chosen


LayerStep = Callable[..., tuple[Tensor, Tensor, Tensor]]


def forward(
    shape: Shape,
    weights: Weights,
    ids: Tensor,
    dropout: float = 0.0,
    step: LayerStep = layer_step,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits ``[batch, tokens, vocabulary]`` of ids ``[batch, tokens]``.

    Returns
    -------
    The logits, and for each layer the router's probabilities and the chosen experts. ``step``
    may be a compiled ``layer_step``.

    """
    half = shape.head_dim // 2
    rate = shape.rope_base ** (-torch.arange(half, device=ids.device, dtype=torch.float64) / half)
    angle = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float64)[:, None] * rate
    cosine, sine = angle.cos().float(), angle.sin().float()
    x = functional.dropout(functional.embedding(ids, weights["token_embd.weight"]), dropout)
    routing = []
    for index in range(shape.layers):
        prefix = f"blk.{index}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        x, probability, chosen = step(shape, own, x, cosine, sine, dropout)
        routing.append((probability, chosen))
    x = rms_norm(x, weights["output_norm.weight"], shape.eps)
    return functional.linear(x, weights["output.weight"]), routing


@torch.no_grad()
def stream_bits(
    shape: Shape, weights: Weights, stream: Tensor, batch: int = 16
) -> tuple[float, Tensor]:
    """Bits to encode all tokens of ``stream`` (1-D) after the first, in float32.

    Windows of ``context`` tokens overlap by half, and only the newer half of each (all of the
    first) is scored, so every token but the earliest has at least context/2 tokens before it.

    Returns
    -------
    The bits, and how often each layer chose each expert on scored tokens ``[layers, experts]``.

    """
    half = shape.context // 2
    counts = torch.zeros(shape.layers, shape.experts, dtype=torch.int64)
    total = 0.0
    starts = list(range(0, max(1, len(stream) - 1 - half), half))
    full = [start for start in starts[1:] if start + shape.context < len(stream)]
    groups = [starts[:1], *(full[at : at + batch] for at in range(0, len(full), batch))]
    groups += [[start] for start in starts[1:] if start + shape.context >= len(stream)]
    for group in groups:
        rows = torch.stack([stream[start : start + shape.context + 1] for start in group])
        skip = half if group[0] else 0
        logits, routing = forward(shape, weights, rows[:, :-1])
        lost = functional.cross_entropy(
            logits[:, skip:].float().flatten(0, 1), rows[:, 1 + skip :].flatten(), reduction="none"
        )
        total += float(lost.double().sum()) / math.log(2)
        for layer, (_, chosen) in enumerate(routing):
            scored = chosen[:, skip:].flatten()
            counts[layer] += torch.bincount(scored, minlength=shape.experts).cpu()
    return total, counts


@torch.no_grad()
def greedy(shape: Shape, weights: Weights, prompt: list[int], tokens: int) -> list[int]:
    """``tokens`` ids that follow ``prompt``, each the argmax."""
    device = weights["token_embd.weight"].device
    ids = list(prompt)
    for _ in range(tokens):
        window = torch.tensor([ids[-shape.context :]], device=device)
        ids.append(int(forward(shape, weights, window)[0][0, -1].argmax()))
    return ids[len(prompt) :]


def load(path: Path, device: str = "cpu") -> tuple[Shape, dict[str, Tensor]]:
    """Shape and dequantised float32 weights of a GGUF file, read with the ``gguf`` package."""
    reader = gguf.GGUFReader(path)
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rows_first = tuple(int(size) for size in reversed(tensor.shape))
        weights[tensor.name] = torch.tensor(values.reshape(rows_first), device=device)

    def fact(key: str) -> float:
        field = reader.get_field(f"qwen3moe.{key}")
        if field is None:
            raise ValueError(f"{path}: qwen3moe.{key} is missing")
        return float(field.contents())

    shape = Shape(
        vocabulary=weights["token_embd.weight"].shape[0],
        layers=int(fact("block_count")),
        hidden=int(fact("embedding_length")),
        heads=int(fact("attention.head_count")),
        kv_heads=int(fact("attention.head_count_kv")),
        head_dim=int(fact("attention.key_length")),
        experts=int(fact("expert_count")),
        top_k=int(fact("expert_used_count")),
        expert_width=int(fact("expert_feed_forward_length")),
        context=int(fact("context_length")),
        rope_base=fact("rope.freq_base"),
        eps=fact("attention.layer_norm_rms_epsilon"),
    )
    return shape, weights
