"""Launches ``attention.cu``: a position's heads into the cache, and attention over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.family import Heads
    from kernels.launch import Kernel

ATTEND = struct(
    ("qkv", POINTER),
    ("q_norm", POINTER),
    ("k_norm", POINTER),
    ("rotation", POINTER),
    ("state", POINTER),
    ("keys", POINTER),
    ("values", POINTER),
    ("partial", POINTER),
    ("arrived", POINTER),
    ("mixed", POINTER),
    ("trace_q", POINTER),
    ("trace_k", POINTER),
    ("kv_heads", np.int32),
    ("eps", np.float32),
)
FAMILY = Family(
    "attention",
    {"attend": ATTEND},
    plants=("stale_kv", "rope_interleaved", "no_qk_norm"),
    per_heads=True,
)
_MOST_HEADS = 8  # query heads of a block (kHeads)
_COLUMNS = 8  # heads that a tensor core takes (kColumns)
_TILE = 16  # positions that a warp weighs at a time (kTile)


class Attention:
    """Norm, rotation and append of a position's heads; grouped-query attention."""

    def __init__(self, program: Program, kv_heads: int) -> None:
        self._kv_heads = kv_heads
        self._attend = program.kernel(FAMILY, "attend")
        heads = program.heads
        self._subgroups = -(-heads.group // min(_MOST_HEADS, heads.group))
        # A block a multiprocessor; more would only be more to merge.
        blocks = program.device.multiprocessors
        self._splits = max(1, blocks // (kv_heads * self._subgroups))
        self._record = 128 * _row_tiles(heads) + 2 * _COLUMNS  # kRecord
        self._warps = _warps(heads)
        # More than half of what there is: two on one multiprocessor would leave another idle.
        declared = shared_bytes(heads) - values_bytes(heads)
        self._shared = max(values_bytes(heads), program.device.shared_bytes // 2 - declared)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel that is launched."""
        return (self._attend,)

    @property
    def partial_values(self) -> int:
        """Float32 values of scratch that ``attend`` takes."""
        return self._kv_heads * self._subgroups * self._splits * self._record

    def attend(
        self,
        *,
        qkv: int,
        q_norm: int,
        k_norm: int,
        rotation: int,
        eps: float,
        state: int,
        keys: int,
        values: int,
        partial: int,
        arrived: int,
        mixed: int,
        stream: object,
        trace_q: int = 0,
        trace_k: int = 0,
    ) -> None:
        """Append the heads of ``state``'s position to the cache; attend to all up to there.

        ``qkv`` is float32 ``[heads + 2 kv_heads, head_dim]``; ``q_norm`` and ``k_norm`` are
        ``[head_dim]``; ``rotation`` is ``embed``'s. ``keys`` and ``values``, this layer's, are
        float16 ``[capacity, kv_heads, head_dim]``. ``mixed`` receives float32 ``[heads,
        head_dim]``.

        ``partial`` is scratch (``partial_values``), ``arrived`` uint32 ``[heads]``, zero.
        ``trace_q`` and ``trace_k`` receive the rotated heads, float32, unless null.
        """
        self._attend.launch(
            {
                "qkv": qkv,
                "q_norm": q_norm,
                "k_norm": k_norm,
                "rotation": rotation,
                "state": state,
                "keys": keys,
                "values": values,
                "partial": partial,
                "arrived": arrived,
                "mixed": mixed,
                "trace_q": trace_q,
                "trace_k": trace_k,
                "kv_heads": self._kv_heads,
                "eps": eps,
            },
            grid=(self._kv_heads, self._subgroups, self._splits),
            stream=stream,
            threads=32 * self._warps,
            shared=self._shared,
        )


def values_bytes(heads: Heads) -> int:
    """Shared memory that ``attend`` is launched with, at least: slots of tiles of values."""
    slots = 2 if heads.head_dim <= 256 else 1  # kSlots
    return slots * _warps(heads) * _TILE * 16 * (2 * _row_tiles(heads) + 1)  # kValueChunks


def shared_bytes(heads: Heads) -> int:
    """Shared memory that a block of ``attend`` needs, with what it declares (``Shared``)."""
    chunks = -(-heads.head_dim // 8)
    loads = -(-chunks // 4)  # kKeyLoads
    query = _COLUMNS * (8 * loads + 1)  # kQueryFours
    weighed = 2 * _warps(heads) * (32 * 16 + 2 * 4 * _COLUMNS)
    last = 16  # whether the block arrives last, and what aligns it
    return values_bytes(heads) + 16 * (query + 2 * chunks) + 4 * _COLUMNS + weighed + last


def _warps(heads: Heads) -> int:
    """Warps of a block (kBlockWarps)."""
    return 8 if heads.head_dim <= 128 else 4


def _row_tiles(heads: Heads) -> int:
    """Sixteens of a head's dimensions (kRowTiles)."""
    return -(-heads.head_dim // 16)
