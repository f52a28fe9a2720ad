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
    ("slots", np.int32),
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
_SLOTS, _LEAST_SLOTS = 3, 2  # of a warp's ring, where there is room; at least
_CLUSTER = 8  # blocks of a cluster, where there are clusters (kCluster)
_DECLARED = 16  # bytes of shared memory that are not the launch's: whether a block arrives last


class Attention:
    """Norm, rotation and append of a position's heads; grouped-query attention."""

    def __init__(self, program: Program, kv_heads: int) -> None:
        self._kv_heads = kv_heads
        self._attend = program.kernel(FAMILY, "attend")
        heads = program.heads
        self._subgroups = -(-heads.group // min(_MOST_HEADS, heads.group))
        # Whole clusters, a block a multiprocessor. Not all multiprocessors are of a part of the GPU
        # that has eight left (an H200 of 132 runs 15 clusters), and one that has to wait for
        # another to end costs as much again.
        clusters = program.device.multiprocessors // _CLUSTER - 1
        self._splits = _CLUSTER * max(1, clusters // (kv_heads * self._subgroups))
        self._record = 8 * (128 * -(-_row_tiles(heads) // 8) + 2 * _COLUMNS)  # kRecord
        self._warps = _warps(heads)
        there = program.device.shared_bytes
        fits = shared_bytes(heads, program.arch, _SLOTS) <= there
        self._slots = _SLOTS if fits else _LEAST_SLOTS
        # More than half of what there is: two on one multiprocessor would leave another idle.
        needed = shared_bytes(heads, program.arch, self._slots)
        self._shared = max(needed, there // 2) - _DECLARED

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
                "slots": self._slots,
                "eps": eps,
            },
            grid=(self._kv_heads, self._subgroups, self._splits),
            stream=stream,
            threads=32 * self._warps,
            shared=self._shared,
        )


def shared_bytes(heads: Heads, arch: str, slots: int = _LEAST_SLOTS) -> int:
    """Shared memory that a block of ``attend`` needs on an architecture.

    At least, unless ``slots`` says otherwise.
    """
    cluster = _CLUSTER if int(arch.removeprefix("sm_")) >= 90 else 1
    tiles, group = _row_tiles(heads), heads.group
    subgroups = -(-group // min(_MOST_HEADS, group))
    slices = 1 << min(cluster, tiles, group // subgroups).bit_length() - 1  # kSlices
    query = _COLUMNS * (8 * -(-tiles // 2) + 2)  # kQueryFours
    fresh = 2 * -(-heads.head_dim // 8)
    inbox = cluster * 32 * -(-tiles // slices)
    metas = (_warps(heads) + cluster) * 2 * _COLUMNS * 4
    rings = slots * _warps(heads) * _TILE * (2 * tiles + 1)  # kRowChunks
    return 16 * (query + fresh + inbox + rings) + 4 * _COLUMNS + metas + _DECLARED


def _warps(heads: Heads) -> int:
    """Warps of a block (kBlockWarps)."""
    return 8 if heads.head_dim <= 128 else 4


def _row_tiles(heads: Heads) -> int:
    """Sixteens of a head's dimensions (kRowTiles)."""
    return -(-heads.head_dim // 16)
