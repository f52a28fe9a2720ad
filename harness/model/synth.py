"""Synthetic models: real shapes and quant types, random blocks, the same bytes for the same seed.

Weights of 18.55 GB cannot be drawn one by one in seconds, and need not be: each tensor is tiled
from a pool of random blocks, from a place in the pool of its own for every 256 KiB, so that no two
experts are equal. Blocks are drawn as bytes, with scales such that the dequantised values have mean
zero and the standard deviation that keeps a forward pass at unit scale; what writes into the
residual stream is scaled by 1/sqrt(2 * layers), which makes a deep model as stable as a trained one
(FACTS: unscaled it is chaotic, and one swapped expert changes everything below it).
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import gguf
import numpy as np

from harness.errors import BadInput
from harness.model.config import Config, tensor_shapes
from harness.model.quants import FORMATS, QuantFormat, dequantise
from harness.model.tokenizer import NO_VOCAB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
_POOL_BYTES = 8 << 20
_PIECE_BYTES = 256 << 10
_WRITE_BYTES = 32 << 20
_FILE_TYPE_Q4_K_M = 15


@dataclass(frozen=True)
class Shape:
    """A model to write: its config, and the format of each tensor by its short name.

    ``formats`` maps a short name (``attn_q``, ``output``) to a format; ``q6_k_mix`` gives attn_v
    and ffn_down_exps Q6_K where Q4_K_M does. What is not named is ``default``; norms and the
    router are F32 unless named.
    """

    config: Config
    formats: Mapping[str, str] = field(default_factory=dict)
    default: str = "Q4_K"
    q6_k_mix: bool = True
    states_vocab: bool = True

    def format_of(self, name: str) -> QuantFormat:
        """Format of the tensor of that full name."""
        parts = name.split(".")
        short = parts[-2]
        chosen = self.formats.get(short)
        if chosen is None and ("norm" in short or short == "ffn_gate_inp"):
            chosen = "F32"
        elif chosen is None and self.q6_k_mix:
            mixed = short in ("attn_v", "ffn_down_exps")
            if short == "output" or (mixed and more_bits(int(parts[1]), self.config.layers)):
                chosen = "Q6_K"
        return FORMATS[chosen or self.default]

    def spans(self) -> Iterator[tuple[str, tuple[int, ...], QuantFormat, int]]:
        """Name, shape, format and bytes of every tensor, in file order."""
        for name, shape in tensor_shapes(self.config).items():
            fmt = self.format_of(name)
            if shape[-1] % fmt.block_values:
                raise ValueError(f"{name}: rows of {shape[-1]} are no whole blocks of {fmt.name}")
            yield name, shape, fmt, math.prod(shape[:-1]) * fmt.row_bytes(shape[-1])

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(size for *_, size in self.spans())


def more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives the layer's attn_v and ffn_down_exps Q6_K.

    The first eighth, the last eighth, and every third between (llama.cpp's ``use_more_bits``).
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


_QWEN3_30B = Config(
    "qwen3moe", 48, 2048, 32, 4, 128, 128, 8, 768, 151936, 1e-6, 1e6, 40960, tied_output=False
)
PRESETS: dict[str, Shape] = {
    "tiny": Shape(
        replace(
            _QWEN3_30B,
            layers=4,
            hidden=256,
            heads=4,
            kv_heads=2,
            head_dim=64,
            experts=8,
            top_k=3,
            expert_width=256,
            vocab=1021,
            context_length=4096,
        )
    ),
    # FACTS, section 2: 48 layers, deep enough to show what drifts.
    "deep": Shape(
        replace(
            _QWEN3_30B,
            hidden=256,
            heads=4,
            kv_heads=2,
            head_dim=64,
            experts=32,
            top_k=4,
            expert_width=256,
            vocab=2048,
            context_length=4096,
        )
    ),
    "odd-all-experts": Shape(
        Config("qwen3moe", 3, 256, 3, 1, 32, 5, 5, 96, 517, 1e-5, 1e4, 2048, tied_output=True),
        formats={"attn_output": "F16", "ffn_down_exps": "Q8_0", "attn_k": "Q8_0"},
        default="Q5_K",
        q6_k_mix=False,
    ),
    "odd-top1": Shape(
        Config("qwen3moe", 3, 512, 2, 2, 128, 7, 1, 256, 1000, 1e-6, 1e7, 2048, tied_output=False),
        formats={"attn_q": "BF16", "attn_k": "F32", "ffn_gate_inp": "F16", "token_embd": "BF16"},
        default="Q6_K",
        q6_k_mix=False,
        states_vocab=False,
    ),
    "qwen3-30b-a3b": Shape(_QWEN3_30B),
}


def synthesise(
    preset: str,
    out: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write the model of a preset to ``out``; returns ``out``.

    Raises
    ------
    BadInput
        For an unknown preset, or a place that cannot be written or has too little room.

    """
    if preset not in PRESETS:
        raise BadInput(f"preset {preset!r} is unknown, expected one of {', '.join(PRESETS)}")
    name = f"synthetic {preset}"
    return write_model(PRESETS[preset], out, name=name, seed=seed, progress=progress)


def write_model(
    shape: Shape,
    out: Path,
    *,
    name: str = "synthetic",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write a synthetic model: beside ``out``, then renamed, so that half of one never stays."""
    beside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    needed = shape.weight_bytes
    try:
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise BadInput(
                f"{out}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room"
            )
        _write_header(shape, beside, name)
        with beside.open("ab") as file:
            _write_tensors(shape, file, seed, progress)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    except OSError as error:
        raise BadInput(
            f"{out}: cannot be written ({error.strerror}); name another place or make room"
        ) from None
    finally:
        # Whatever ended it early, a full disk or Ctrl-C: nothing half-written stays.
        if beside.parent.is_dir():
            beside.unlink(missing_ok=True)
    return out


def _write_header(shape: Shape, path: Path, name: str) -> None:
    c = shape.config
    writer = gguf.GGUFWriter(path, c.architecture)
    writer.add_name(name)
    writer.add_description("random weights, for measuring; it has learnt nothing")
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden)
    writer.add_feed_forward_length(c.expert_width)
    writer.add_expert_feed_forward_length(c.expert_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    if shape.states_vocab:
        writer.add_vocab_size(c.vocab)
    writer.add_tokenizer_model(NO_VOCAB)  # llama.cpp does not load a file that says nothing of it
    writer.add_file_type(_FILE_TYPE_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor, extents, fmt, size in shape.spans():
        stored = (*extents[:-1], fmt.row_bytes(extents[-1]))
        writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), size, fmt.gguf_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _write_tensors(
    shape: Shape, file: BinaryIO, seed: int, progress: Callable[[int, int], None]
) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))
    total, done = shape.weight_bytes, 0
    pools: dict[str, NDArray[np.uint8]] = {}
    for index, (name, extents, fmt, size) in enumerate(shape.spans()):
        # A stream for each tensor: its bytes depend on nothing that was written before it.
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        if fmt.name == "F32" or size < _PIECE_BYTES:
            file.write(_small(rng, name, extents, fmt, shape.config).tobytes())
        else:
            if fmt.name not in pools:
                pools[fmt.name] = _pool(fmt, seed)
            spread = _spread(name, extents, shape.config)
            _write_tiled(file, rng, _scaled(pools[fmt.name], fmt, spread), fmt, size)
        file.write(bytes(-size % _ALIGNMENT))
        done += size
        progress(done, total)


def _spread(name: str, extents: tuple[int, ...], c: Config) -> float:
    """Give the standard deviation that a tensor's values should have."""
    short = name.split(".")[-2]
    fan_in = 1 / math.sqrt(extents[-1])
    if short in ("attn_output", "ffn_down_exps"):
        return fan_in * 2 / math.sqrt(2 * c.layers)
    if short == "token_embd" and not c.tied_output:
        return 1.0
    # Wide logits: with near-uniform ones an argmax, or a choice of experts, would mean nothing.
    return fan_in * (2 if short in ("ffn_gate_inp", "output", "token_embd") else 1)


def _small(
    rng: np.random.Generator, name: str, extents: tuple[int, ...], fmt: QuantFormat, c: Config
) -> NDArray[np.uint8]:
    """Draw a small or F32 tensor by itself: norms near one, the rest normal."""
    if fmt.block_values > 1:
        blocks = math.prod(extents) // fmt.block_values
        return _scaled(_draw(rng, fmt, blocks), fmt, _spread(name, extents, c))
    if "norm" in name:
        values = 1 + 0.1 * rng.standard_normal(extents)
    else:
        values = rng.standard_normal(extents) * _spread(name, extents, c)
    raw = gguf.quants.quantize(values.astype(np.float32), fmt.gguf_type)
    return np.ascontiguousarray(raw).view(np.uint8).reshape(-1)


def _pool(fmt: QuantFormat, seed: int) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.PCG64([seed, 1 << 20, int(fmt.gguf_type)]))
    return _draw(rng, fmt, _POOL_BYTES // fmt.block_bytes)


def _draw(rng: np.random.Generator, fmt: QuantFormat, blocks: int) -> NDArray[np.uint8]:
    """Random blocks of unit scale (``_scaled`` sets it), uint8 ``[blocks, block_bytes]``.

    K-quants: random quants and sub-scales. A Q4_K or Q5_K group is d*scale*q - dmin*min with q
    uniform, so its mean is zero where dmin*min = d*scale*(q's mean): mins equal scales, and dmin
    is d times that mean.
    """
    if fmt.block_values == 1:
        values = rng.standard_normal((1, blocks)).astype(np.float32)
        flat = np.ascontiguousarray(gguf.quants.quantize(values, fmt.gguf_type))
        return flat.view(np.uint8).reshape(-1, fmt.block_bytes)
    raw = rng.integers(0, 256, (blocks, fmt.block_bytes), dtype=np.uint8)
    if fmt.name in ("Q4_K", "Q5_K"):
        low, high = (rng.integers(32, 64, (blocks, 4), dtype=np.uint8) for _ in range(2))
        # Scales and mins 0-3: six bits each; 4-7: low nibbles together, high bits above the former.
        top = (high >> 4) << 6
        raw[:, 4:8] = low | top
        raw[:, 8:12] = low | top
        raw[:, 12:16] = (high & 15) | ((high & 15) << 4)
    elif fmt.name == "Q6_K":
        raw[:, 192:208] = rng.integers(32, 96, (blocks, 16), dtype=np.uint8)
    return raw


# Where the float16 scale of a block stands, and the mean of its quants (None: zero-centred).
_D = {"Q8_0": (0, None), "Q4_K": (0, 7.5), "Q5_K": (0, 15.5), "Q6_K": (208, None)}


def _scaled(pool: NDArray[np.uint8], fmt: QuantFormat, spread: float) -> NDArray[np.uint8]:
    """Give blocks the scale at which their values have the standard deviation ``spread``; flat."""
    out = pool.copy()
    if fmt.block_values == 1:
        values = dequantise(pool.reshape(1, -1), fmt) * np.float32(spread)
        raw = gguf.quants.quantize(values, fmt.gguf_type)
        return np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
    at, mean = _D[fmt.name]

    def set_scale(scale: float) -> None:
        out[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        if mean is not None:
            out[:, 2:4] = np.frombuffer(np.float16(scale * mean).tobytes(), np.uint8)

    set_scale(1.0)
    set_scale(spread / float(dequantise(out[:256], fmt).std()))
    return out.reshape(-1)


def _write_tiled(
    file: BinaryIO,
    rng: np.random.Generator,
    pool: NDArray[np.uint8],
    fmt: QuantFormat,
    size: int,
) -> None:
    """Write ``size`` bytes in pieces, each from a random block of the pool on."""
    piece = _PIECE_BYTES // fmt.block_bytes * fmt.block_bytes
    places = rng.integers(0, (pool.size - piece) // fmt.block_bytes, -(-size // piece))
    batch = bytearray()
    left = size
    for place in places:
        start = int(place) * fmt.block_bytes
        batch += pool[start : start + min(piece, left)].data
        left -= min(piece, left)
        if len(batch) >= _WRITE_BYTES or not left:
            file.write(batch)
            batch.clear()
