"""The protocol that every decoder keeps: backends and the oracle alike.

The guard and the meter know decoders through this module only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from harness.model import Model
    from harness.numerics import Numerics
    from harness.stages import Capture


@runtime_checkable
class Decoder(Protocol):
    """One backend holding one model, decoding one sequence at batch 1.

    A decoder owns a KV cache of ``capacity`` positions; ``position`` is the number filled.
    ``device`` is the name of what computes, ``device_id`` tells it from its like: ``cpu``, or the
    GPU's UUID. ``cache_bytes`` is the size of the KV cache.
    """

    model: Model
    numerics: Numerics
    backend: str
    device: str
    device_id: str
    cache_bytes: int
    capacity: int
    position: int

    def reset(self) -> None:
        """Forget the sequence: position 0. Old cache contents must not matter afterwards."""

    def rewind(self, position: int) -> None:
        """Go back to an earlier position; the cache before it stays as it is."""

    def step(
        self,
        token: int,
        capture: Capture | None = None,
        forced: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Decode one token at the next position.

        Parameters
        ----------
        token
            Its id, ``0 <= token < vocab``.
        capture
            Stages to fill. Capturing changes no result.
        forced
            float32 ``[layers, hidden]``: each layer's input, in place of the decoder's own
            hidden state (teacher-forcing). The embedding is not used then.

        Returns
        -------
        Logits, float32 ``[vocab]``, a copy that the next step leaves alone.

        Raises
        ------
        BadInput
            For an id outside the vocabulary or a full cache.

        """

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Decode ``prompt`` and then ``count`` tokens greedily (argmax, ties to the lower id)."""

    def fill_cache(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the cache from position 0: float32 ``[layers, positions, kv_heads, head_dim]``.

        Keys are as after RoPE. ``position`` becomes ``positions``.
        """

    def sibling(self, capacity: int) -> Decoder:
        """Open another decoder of the same model, numerics and device; weights may be shared."""

    def ran(self) -> Mapping[str, object]:
        """Say what computes: backend, device, threads, kernel source hash."""

    def close(self) -> None:
        """Free what the decoder holds; it is not used afterwards."""


@dataclass(frozen=True)
class TimedPass:
    """One timed pass over a prompt and the tokens behind it.

    Attributes
    ----------
    milliseconds
        Of each token decoded, argmax included.
    tokens
        Argmax at the last position of the prompt, then at each token decoded: one more than
        ``milliseconds``.
    logits
        Rows that the pass can show, float32 ``[vocab]``, by index into ``tokens``; the last one at
        least.

    """

    milliseconds: list[float]
    tokens: list[int]
    logits: Mapping[int, NDArray[np.float32]]


@runtime_checkable
class DeviceTimed(Protocol):
    """A decoder whose device keeps the time; others are timed by the host's clock."""

    def timed_pass(self, prompt: Sequence[int], count: int) -> TimedPass:
        """Decode ``prompt`` untimed, then ``count`` tokens of its own choosing, timed."""


class Batch(Protocol):
    """Independent sequences that are decoded together, a token of each at a step.

    ``members`` are their decoders, one each; a step moves all of them on. What a sequence computes
    is bit for bit what its member computes alone.
    """

    @property
    def members(self) -> Sequence[Decoder]:
        """In their order."""

    def step(self, tokens: Sequence[int]) -> list[NDArray[np.float32]]:
        """Decode one token of each sequence; logits of each, as ``Decoder.step``."""

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Decode prompts of one length, then ``count`` tokens of each greedily.

        All of them are decoded: ``len(prompt) + count`` positions are used.
        """

    def timed_pass(self, prompts: Sequence[Sequence[int]], count: int) -> list[TimedPass]:
        """Decode prompts of one length untimed, then ``count`` steps, timed.

        A pass for each sequence; the milliseconds are those of the steps, and so the same in all.
        """

    def ran(self) -> Mapping[str, object]:
        """Say what computes."""

    def let_go(self) -> None:
        """Free what decoding the members one by one took."""

    def close(self) -> None:
        """Free all but the first sequence, which its owner closes."""


# Launches in one timing of a family that a token launches once, and shortly; where the cache has
# room: argmax moves on by a position each time.
COPIES = 16


class FamilyClock(Protocol):
    """Repeats a decoder's last step, and times one family of its kernels at a time.

    ``launches`` are those of a token, by family. ``read_before`` names, by family, the one that
    reads other weights last before it is timed: these displace its own from the cache.
    """

    @property
    def launches(self) -> Mapping[str, int]:
        """Of one token."""

    @property
    def read_before(self) -> Mapping[str, str]:
        """Family by family."""

    def logits(self) -> NDArray[np.float32]:
        """Repeat the step, untimed; its logits, float32 ``[vocab]``."""

    def milliseconds(self, family: str, repeats: int) -> list[float]:
        """Time all of a family's launches in one token, ``repeats`` times; KeyError if unknown."""

    def left(self) -> bytes:
        """All that the last of them left behind, but for the cache."""

    def close(self) -> None:
        """Free what it holds; the decoder is rewound before it decodes again."""


@runtime_checkable
class FamilyTimed(Decoder, Protocol):
    """A decoder whose kernel families can be timed by themselves."""

    def family_clock(self, token: int) -> FamilyClock:
        """Open the clock of the last step, which decoded ``token``."""


class Decisions(Protocol):
    """What a decoder may be told where rounding alone decides either way."""

    def experts(
        self, layer: int, normed: NDArray[np.float32], chosen: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Which experts to take, ids ``[top_k]`` in any order; None for those it has chosen.

        ``normed`` ``[hidden]`` is what the router's logits come from.
        """

    def cached(self, layer: int, own: NDArray[np.float32]) -> NDArray[np.floating] | None:
        """What a float16 cache keeps; None to round ``own``, ``[2, kv_heads, head_dim]``."""


@runtime_checkable
class Instructed(Protocol):
    """A decoder that can be told; ``decisions`` None leaves everything to itself."""

    decisions: Decisions | None


# -- what every decoder refuses ----------------------------------------------------------------


def check_step(decoder: Decoder, token: int, forced: NDArray[np.float32] | None) -> None:
    """Refuse a token that this decoder cannot take now (``Decoder.step``)."""
    c = decoder.model.config
    if not 0 <= token < c.vocab:
        raise BadInput(f"token {token} is outside the vocabulary of {c.vocab}")
    if decoder.position >= decoder.capacity:
        raise BadInput(f"the cache is full at {decoder.capacity} positions; ask for a larger one")
    if forced is not None and forced.shape != (c.layers, c.hidden):
        raise ValueError(f"forced is {forced.shape}, expected {(c.layers, c.hidden)}")


def check_rewind(decoder: Decoder, position: int) -> None:
    """Refuse a position that was never reached (``Decoder.rewind``)."""
    if not 0 <= position <= decoder.position:
        raise ValueError(f"position {position} is not behind {decoder.position}")


def check_filling(decoder: Decoder, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
    """Refuse keys and values that do not fit the cache (``Decoder.fill_cache``)."""
    c, positions = decoder.model.config, keys.shape[1]
    if positions > decoder.capacity:
        raise BadInput(f"{positions} positions do not fit the cache of {decoder.capacity}")
    expected = (c.layers, positions, c.kv_heads, c.head_dim)
    if keys.shape != expected or values.shape != expected:
        raise ValueError(f"cache of {keys.shape} and {values.shape}, expected {expected}")
