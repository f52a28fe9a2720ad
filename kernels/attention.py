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
_WARPS = 4  # of a block (kBlockWarps)
_MOST_HEADS = 8  # query heads of a block (kHeads)
_COLUMNS = 8  # heads that a tensor core takes (kColumns)
_MERGED = 64  # dimensions that sums are padded to a multiple of (kUnits)


class Attention:
    """Norm, rotation and append of a position's heads; grouped-query attention."""

    def __init__(self, program: Program, kv_heads: int) -> None:
        self._kv_heads = kv_heads
        self._attend = program.kernel(FAMILY, "attend")
        heads = program.heads
        self._block_heads = _block_heads(heads)
        self._subgroups = -(-heads.group // self._block_heads)
        # A block a multiprocessor; more would only be more to merge.
        blocks = program.device.multiprocessors
        self._splits = max(1, blocks // (kv_heads * self._subgroups))
        self._record = _sums(heads) + 4  # kRecord
        self._shared = sums_bytes(heads)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel that is launched."""
        return (self._attend,)

    @property
    def partial_values(self) -> int:
        """Float32 values of scratch that ``attend`` takes."""
        return self._kv_heads * self._subgroups * self._splits * self._block_heads * self._record

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
            threads=32 * _WARPS,
            shared=self._shared,
        )


def sums_bytes(heads: Heads) -> int:
    """Shared memory that ``attend`` is launched with: its warps' sums."""
    return 4 * _WARPS * _block_heads(heads) * (_sums(heads) + 8)  # kSumsStride


def shared_bytes(heads: Heads) -> int:
    """Shared memory of a block of ``attend``, with what it declares by itself (``Shared``)."""
    chunks = -(-heads.head_dim // 8)
    loads = -(-chunks // 4)  # kKeyLoads
    query = 2 * _COLUMNS * (4 * loads + (0 if loads % 2 else 4))  # kQueryChunks
    return sums_bytes(heads) + 16 * (query + 2 * chunks) + 4 * _COLUMNS * (1 + 2 * _WARPS)


def _block_heads(heads: Heads) -> int:
    return min(_MOST_HEADS, heads.group)


def _sums(heads: Heads) -> int:
    """Values of a head's sums, as they are merged."""
    return -(-heads.head_dim // _MERGED) * _MERGED
