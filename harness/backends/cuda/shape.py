"""Which shapes of models the kernels can have: what a block stages must fit its shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import BadInput
from kernels.attention import shared_bytes
from kernels.experts import Choosing, down_bytes, down_stream, gate_up_bytes, gate_up_stream
from kernels.family import Heads
from kernels.launch import ANNOUNCER_BYTES, DECLARED, SUPERBLOCK, Device, input_bytes
from kernels.matvec import row_stream
from kernels.weights import can_be_tiled, matrix

if TYPE_CHECKING:
    import numpy as np

    from harness.backends.cuda.gpu import Gpu
    from harness.model import Config

_MOST_HEAD_DIM = 384  # the largest that attention is compiled and tested for
_TILED = "Q6_K"  # whose tiles are the largest


def check_shape(config: Config, gpu: Gpu, activation: str, *, tiles: bool) -> None:
    """Refuse a shape that the kernels, over tiles too if the numerics has them, cannot have.

    Raises
    ------
    BadInput
        With the kernel that would take the most, and how much that is.

    """
    if config.head_dim > _MOST_HEAD_DIM:
        raise BadInput(
            f"heads of {config.head_dim} values, expected at most {_MOST_HEAD_DIM}; "
            "use --backend cpu"
        )
    _check("use --backend cpu", plain_bytes(config, activation, gpu), gpu)
    if tiles:
        _check("use --numerics f32 or --backend cpu", tiled_bytes(config, gpu), gpu)


def _check(instead: str, needed: dict[str, int], gpu: Gpu) -> None:
    most, kernel = max(((nbytes, kernel) for kernel, nbytes in needed.items()), default=(0, ""))
    if most > gpu.shared_bytes:
        raise BadInput(
            f"{kernel} takes {most} bytes of shared memory for a model of this shape, "
            f"{gpu.name} has {gpu.shared_bytes}; {instead}"
        )


def plain_bytes(config: Config, activation: str, gpu: Gpu) -> dict[str, int]:
    """Shared memory of a block, by kernel, over matrices that are not tiled."""
    c, choosing = config, _choosing(config)
    staged = {
        "qkv": input_bytes(c.hidden, activation),
        "attention_output": input_bytes(c.q_width, activation),
        "route": input_bytes(c.hidden, activation),
        "gate_up": gate_up_bytes(c.hidden, choosing, activation),
        "down": down_bytes(c.expert_width, choosing, activation),
        "logits": input_bytes(c.hidden, activation),
    }
    attend = shared_bytes(Heads(c.head_dim, c.heads // c.kv_heads), gpu.arch)
    return {**{kernel: nbytes + DECLARED for kernel, nbytes in staged.items()}, "attend": attend}


def tiled_bytes(config: Config, gpu: Gpu) -> dict[str, int]:
    """Shared memory of a block, by kernel, over the largest tiles that matrices can be cut into."""
    c, choosing = config, _choosing(config)
    device = Device(gpu.multiprocessors, gpu.shared_bytes)
    q, kv = _tiles(c.q_width, c.hidden), _tiles(c.kv_width, c.hidden)
    o, output = _tiles(c.hidden, c.q_width), _tiles(c.vocab, c.hidden)
    gate, down = _tiles(c.expert_width, c.hidden), _tiles(c.hidden, c.expert_width)
    streams = {}
    if q is not None and kv is not None:
        streams["qkv_tiled"] = row_stream(q, kv, kv, device=device)
    if o is not None:
        streams["attention_output_tiled"] = row_stream(o, besides=ANNOUNCER_BYTES, device=device)
    if gate is not None:
        streams["gate_up_tiled"] = gate_up_stream(gate, gate, choosing, device)
    if down is not None:
        streams["down_tiled"] = down_stream(down, choosing, device)
    if output is not None:
        streams["logits_tiled"] = row_stream(output, device=device)
    return {kernel: stream.shared for kernel, stream in streams.items()}


def _choosing(config: Config) -> Choosing:
    return Choosing(0, 0, config.experts, config.top_k)


def _tiles(rows: int, columns: int) -> np.void | None:
    """Stand-in of a matrix in tiles; None if that shape cannot be cut into any."""
    if columns % SUPERBLOCK or not can_be_tiled(_TILED, (rows, columns)):
        return None
    return matrix(0, f"{_TILED}_TILED", (rows, columns), 0)
