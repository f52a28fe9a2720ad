"""What a user would notice: argmaxes on the canonical prompts, KL divergence on a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import BadInput
from harness.guard.distance import finite_or_none
from harness.model.prompts import CANONICAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.model import Model
    from harness.reference import Oracle

BENIGN, NOT_BENIGN = "BENIGN", "NOT BENIGN"

WINDOW = 256  # positions decoded in one go, at most: their logits are held in float64
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class PromptArgmax:
    """One canonical prompt, free-running: the argmax behind it, and those at every position."""

    name: str
    candidate: int
    reference: int
    agree: int
    positions: int

    @property
    def same(self) -> bool:
        """Whether the next token is the same."""
        return self.candidate == self.reference


@dataclass(frozen=True)
class CanonicalArgmaxes:
    """All canonical prompts that the vocabulary has, and the names of those that it has not."""

    prompts: tuple[PromptArgmax, ...]
    inapplicable: tuple[str, ...]

    @property
    def ruling(self) -> str:
        """BENIGN if the next token is the same behind every prompt, and there was one."""
        return BENIGN if self.prompts and all(p.same for p in self.prompts) else NOT_BENIGN

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "ruling": self.ruling,
            "agree": sum(prompt.same for prompt in self.prompts),
            "prompts": [vars(prompt) for prompt in self.prompts],
            "inapplicable": list(self.inapplicable),
        }


@dataclass(frozen=True)
class TextStatistics:
    """A candidate's distributions against the reference's, ``[positions]``.

    ``kl``: KL(reference || candidate) in nats, infinite where the candidate's logits are not
    finite; ``same``: whether the most likely token is the same.
    """

    reference: str
    windows: int
    kl: NDArray[np.float64]
    same: NDArray[np.bool_]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        ranked = np.sort(self.kl)
        return {
            "reference": self.reference,
            "positions": int(self.kl.size),
            "windows": self.windows,
            "kl_nats": {
                "mean": finite_or_none(float(ranked.mean())),
                "median": finite_or_none(float(ranked[len(ranked) // 2])),
                "p99": finite_or_none(float(ranked[int(0.99 * (len(ranked) - 1))])),
                "max": finite_or_none(float(ranked[-1])),
            },
            "top_1_agreement": float(self.same.mean()),
            "top_1_differ": int((~self.same).sum()),
        }


def canonical_argmaxes(candidate: Decoder, reference: Oracle) -> CanonicalArgmaxes:
    """Decode every canonical prompt with both, free-running; nothing is replayed."""
    prompts, inapplicable = [], []
    for name, ids in CANONICAL.items():
        if max(ids) >= candidate.model.config.vocab:
            inapplicable.append(name)
            continue
        got = _decoded(candidate, ids)
        reference.reset()
        truth = reference.run(ids).logits
        agree = int((got.argmax(1) == truth.argmax(1)).sum())
        last = int(got[-1].argmax()) if np.isfinite(got[-1]).all() else -1
        prompts.append(PromptArgmax(name, last, int(truth[-1].argmax()), agree, len(ids)))
    return CanonicalArgmaxes(tuple(prompts), tuple(inapplicable))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises
    ------
    BadInput
        For one that cannot be read, is no UTF-8, or is longer than 64 MiB.

    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise BadInput(f"{path}: {size} bytes of text, expected at most {_MOST_BYTES}")
        return path.read_bytes().decode()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: no UTF-8 at byte {error.start}; name a text file") from None


def text_windows(model: Model, text: str, positions: int) -> list[list[int]]:
    """Tokens of a text in sequences of at most ``WINDOW``, ``positions`` in all.

    Raises
    ------
    BadInput
        Where the model has no tokenizer, or the text fewer tokens.

    """
    if model.tokenizer is None:
        raise BadInput(
            f"--text: {model.path.name} has no tokenizer; use --canonical, or a model that has one"
        )
    # No tokenizer makes more than some ten bytes of text into a token; the rest is not needed.
    ids = model.tokenizer.encode(text[: 64 * positions])[:positions]
    if len(ids) < positions:
        raise BadInput(
            f"--text: the text has {len(ids)} tokens, expected {positions}; give a longer one or "
            "fewer --positions"
        )
    width = min(WINDOW, model.config.context_length)
    return [ids[start : start + width] for start in range(0, positions, width)]


def text_statistics(
    candidate: Decoder, reference: Oracle, windows: Sequence[Sequence[int]]
) -> TextStatistics:
    """Decode the windows with both, each from an empty cache; nothing is replayed."""
    kl, same = [], []
    for ids in windows:
        got = _decoded(candidate, ids)
        reference.reset()
        truth = reference.run(ids).logits
        kl.append(divergence(got, truth))
        same.append((got.argmax(1) == truth.argmax(1)) & np.isfinite(got).all(1))
    return TextStatistics(reference.name, len(windows), np.concatenate(kl), np.concatenate(same))


def divergence(
    candidate: NDArray[np.floating], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL(reference || candidate) of softmaxes of ``[positions, vocab]``, nats, ``[positions]``."""
    with np.errstate(all="ignore"):
        q, p = (_log_softmax(logits.astype(np.float64)) for logits in (candidate, reference))
        nats = (np.exp(p) * (p - q)).sum(1)
    # Rounding may take a divergence of nothing below zero.
    return np.where(np.isfinite(nats), np.maximum(nats, 0.0), np.inf)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _decoded(decoder: Decoder, ids: Sequence[int]) -> NDArray[np.float32]:
    decoder.reset()
    return np.stack([decoder.step(token) for token in ids])
