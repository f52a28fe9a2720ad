"""The baseline that a trained model must beat: an interpolated modified Kneser-Ney n-gram.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling"
(1998), section 3; discounts D1, D2, D3+ for every order from its own counts of counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class KneserNey:
    """An n-gram over token ids below ``vocabulary``, trained on one stream.

    The highest order counts occurrences; each lower order counts the distinct tokens seen to the
    left of an n-gram. Unigrams are interpolated with the uniform distribution, so every token has
    a positive probability and the probabilities after any context sum to 1.
    """

    def __init__(self, stream: Ids, vocabulary: int, order: int = 5) -> None:
        if vocabulary**order >= 2**63:
            raise ValueError(f"{order} tokens of {vocabulary} do not fit 64 bits; lower the order")
        self.vocabulary = vocabulary
        self.order = order
        self._levels: list[tuple[Ids, Floats, Ids, Floats]] = []
        keys, counts = np.unique(_windows(stream, order, vocabulary), return_counts=True)
        for length in range(order, 0, -1):
            self._levels.append(_level(keys, counts, vocabulary))
            if length > 1:
                # Dropping the first token of each distinct n-gram leaves one count per left token.
                keys, counts = np.unique(keys % vocabulary ** (length - 1), return_counts=True)
        self._levels.reverse()

    def probabilities(self, contexts: Ids, tokens: Ids) -> Floats:
        """P(token | context) ``[n]`` of ``contexts`` ``[n, order - 1]`` and ``tokens`` ``[n]``."""
        probability = np.full(len(tokens), 1 / self.vocabulary)
        context = np.zeros(len(tokens), dtype=np.int64)
        for length, (keys, share, context_keys, backoff) in enumerate(self._levels, start=1):
            if length > 1:
                older = contexts[:, self.order - length]
                context = context + older * self.vocabulary ** (length - 2)
            seen, at = _find(context_keys, context)
            probability = np.where(seen, backoff[at] * probability, probability)
            known, at = _find(keys, context * self.vocabulary + tokens)
            probability += np.where(known, share[at], 0)
        return probability

    def bits(self, stream: Ids, start: int) -> float:
        """Bits to encode all tokens after the first, ``start`` filling the missing context."""
        padded = np.concatenate([np.full(self.order, start), stream])
        total = 0.0
        for first in range(1, len(stream), 1 << 18):
            at = np.arange(first, min(first + (1 << 18), len(stream))) + self.order
            contexts = np.stack([padded[at - back] for back in range(self.order - 1, 0, -1)], 1)
            total -= float(np.log2(self.probabilities(contexts, padded[at])).sum())
        return total

    def sums(self, contexts: Ids) -> Floats:
        """Sum of the probabilities of all tokens after each context; each must be 1."""
        every = np.arange(self.vocabulary)
        return np.array(
            [
                self.probabilities(np.repeat(row[None], len(every), axis=0), every).sum()
                for row in contexts
            ]
        )


def _windows(stream: Ids, length: int, vocabulary: int) -> Ids:
    keys = np.zeros(len(stream) - length + 1, dtype=np.int64)
    for offset in range(length):
        keys = keys * vocabulary + stream[offset : len(stream) - length + 1 + offset]
    return keys


def _level(keys: Ids, counts: Ids, vocabulary: int) -> tuple[Ids, Floats, Ids, Floats]:
    """Tables of one order: n-grams, their discounted shares, contexts, their back-off weights."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts, starts = np.unique(keys // vocabulary, return_index=True)
    totals = np.add.reduceat(counts, starts)
    backoff = np.add.reduceat(discount, starts) / totals
    per_key = np.repeat(totals, np.diff(np.append(starts, len(keys))))
    return keys, (counts - discount) / per_key, contexts, backoff


def _discounts(counts: Ids) -> Floats:
    """D for a count of 0 (unused), 1, 2 and 3 or more."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0, 0.5, 1.0, 1.5])  # too little text to estimate them
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.asarray(np.clip(estimate, 0, [0, 1, 2, 3]))


def _find(keys: Ids, wanted: Ids) -> tuple[NDArray[np.bool_], Ids]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[at] == wanted, at
