"""Launches ``attention.cu``: heads into the cache, then attention over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.family import POINTER, Family, struct
from kernels.launch import WARPS

if TYPE_CHECKING:
    from kernels.compiler import Program
    from kernels.launch import Kernel

APPEND = struct(
    ("qkv", POINTER),
    ("q_norm", POINTER),
    ("k_norm", POINTER),
    ("rotation", POINTER),
    ("state", POINTER),
    ("q", POINTER),
    ("k", POINTER),
    ("keys", POINTER),
    ("values", POINTER),
    ("heads", np.int32),
    ("kv_heads", np.int32),
    ("eps", np.float32),
    ("padding", np.int32),
)
ATTEND = struct(
    ("q", POINTER),
    ("keys", POINTER),
    ("values", POINTER),
    ("state", POINTER),
    ("partial", POINTER),
    ("arrived", POINTER),
    ("mixed", POINTER),
    ("kv_heads", np.int32),
    ("padding", np.int32),
)
FAMILY = Family(
    "attention",
    {"append": APPEND, "attend": ATTEND},
    plants=("stale_kv", "rope_interleaved", "no_qk_norm"),
    per_heads=True,
)
_WARP = 32
_PER_MULTIPROCESSOR = 2  # blocks that read the cache
_MOST_HEADS = 8  # query heads of a block


class Attention:
    """Norm, rotation and append of a position's heads; grouped-query attention."""

    def __init__(self, program: Program, kv_heads: int) -> None:
        self._heads, self._kv_heads = program.heads, kv_heads
        self._append = program.kernel(FAMILY, "append")
        self._attend = program.kernel(FAMILY, "attend")
        group = program.heads.group
        # As kHeads: a power of two, so that a warp's lanes share out its scores evenly.
        self._block_heads = min(_MOST_HEADS, 1 << (group - 1).bit_length())
        self.subgroups = -(-group // self._block_heads)
        blocks = _PER_MULTIPROCESSOR * program.device.multiprocessors
        self.splits = max(1, blocks // (kv_heads * self.subgroups))
        self._record = self._block_heads * (program.heads.head_dim + 2)  # floats

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that are launched."""
        return (self._append, self._attend)

    @property
    def partial_values(self) -> int:
        """Float32 values of scratch that ``attend`` takes."""
        return self._kv_heads * self.subgroups * self.splits * self._record

    def append(
        self,
        *,
        qkv: int,
        q_norm: int,
        k_norm: int,
        rotation: int,
        eps: float,
        state: int,
        q: int,
        keys: int,
        values: int,
        stream: object,
        trace_k: int = 0,
    ) -> None:
        """Norm and rotate Q and K, append K and V to this layer's cache at ``state``'s position.

        ``qkv`` is float32 ``[heads + 2 kv_heads, head_dim]``, ``q`` receives ``[heads, head_dim]``;
        ``keys`` and ``values`` are float16 ``[capacity, kv_heads, head_dim]``.
        """
        heads = self._kv_heads * self._heads.group
        self._append.launch(
            {
                "qkv": qkv,
                "q_norm": q_norm,
                "k_norm": k_norm,
                "rotation": rotation,
                "eps": eps,
                "state": state,
                "q": q,
                "k": trace_k,
                "keys": keys,
                "values": values,
                "heads": heads,
                "kv_heads": self._kv_heads,
            },
            grid=(heads + 2 * self._kv_heads,),
            stream=stream,
            threads=_WARP,
        )

    def attend(
        self,
        *,
        q: int,
        keys: int,
        values: int,
        state: int,
        partial: int,
        arrived: int,
        mixed: int,
        stream: object,
    ) -> None:
        """Attend to all positions up to ``state``'s: ``mixed`` is float32 ``[heads, head_dim]``.

        ``partial`` is scratch (``partial_values``), ``arrived`` uint32 ``[kv_heads, subgroups]``,
        zero.
        """
        self._attend.launch(
            {
                "q": q,
                "keys": keys,
                "values": values,
                "state": state,
                "partial": partial,
                "arrived": arrived,
                "mixed": mixed,
                "kv_heads": self._kv_heads,
            },
            grid=(self.splits, self._kv_heads, self.subgroups),
            stream=stream,
            shared=4 * (WARPS * self._record + self._block_heads * max(WARPS, self.splits)),
        )
