"""Where the parity laboratory meets decoders, oracles, guard and meter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends import chosen_backend, turned_to
from harness.errors import Rejected
from harness.guard import guard
from harness.guard.peer import PeerReference
from harness.guard.run import tolerance_against
from harness.lab.explain import explain
from harness.lab.ladder import Drift, Rung, Track, decoder_track, drift, oracle_track
from harness.lab.layers import all_swaps, first_divergent, layer_errors, swap_json
from harness.lab.text import (
    WINDOW,
    canonical_argmaxes,
    read_text,
    text_statistics,
    text_windows,
)
from harness.meter.commit import provenance
from harness.meter.decode import Workload, measure_decode
from harness.meter.stopping import StoppingRule
from harness.model.embedded import heldout
from harness.model.prompts import CANONICAL
from harness.numerics import all_numerics
from harness.suite import instruments_of, open_oracle, watched_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.guard import Evidence
    from harness.lab.explain import Explanation
    from harness.lab.layers import LayerError
    from harness.model import Model
    from harness.numerics import Numerics
    from harness.reference import Oracle

HELDOUT = "heldout"

_SAID = (
    "times are of plain kernels, but for i24, the optimised path on tensor cores; drift is "
    "free-running, nothing replayed, from float64 references that keep the cache as the rung does"
)
# A rung's time is one column of a table: less time than a measurement of its own.
_RULE = StoppingRule(time_out=3.0)


@dataclass(frozen=True)
class Asked:
    """What else ``parity`` is to find out: ``text`` is a file, or the word ``heldout``."""

    explain: bool = False
    canonical: bool = False
    text: str | None = None
    positions: int = 0

    def capacity(self, prompt: int) -> int:
        """Positions that the candidate and the reference need."""
        longest = max(map(len, CANONICAL.values())) if self.canonical else 0
        return max(prompt, longest, WINDOW if self.text is not None else 0)


@dataclass(frozen=True)
class Findings:
    """What the laboratory adds to a parity run, for its JSON and its table."""

    errors: list[LayerError]
    explanation: Explanation | None
    data: dict[str, Any]


def windows_of(model: Model, asked: Asked) -> list[list[int]]:
    """Read and tokenise the text, before anything long begins; empty where none was asked for.

    Raises
    ------
    BadInput
        For a text that cannot be had.

    """
    if asked.text is None:
        return []
    text = heldout() if asked.text == HELDOUT else read_text(Path(asked.text))
    return text_windows(model, text, asked.positions)


def investigate(
    candidate: Decoder,
    reference: Oracle,
    ids: Sequence[int],
    evidence: Evidence,
    asked: Asked,
    windows: Sequence[Sequence[int]],
    device: int = 0,
) -> Findings:
    """Find out what was asked; ``reference`` is closed afterwards.

    Argmaxes and texts are held against the peer, or against the oracle that rounds nothing: it is
    the truth whatever the candidate's format.
    """
    errors = layer_errors(evidence, tolerance_against(candidate.numerics, reference))
    first = first_divergent(errors)
    explanation = None
    if asked.explain and not evidence.verdict.accepted:
        explanation = explain(candidate, reference, ids, evidence, errors)
    data: dict[str, Any] = {
        "first_divergent_layer": None if first is None else first.layer,
        "swaps": [swap_json(name, swap) for name, swap in all_swaps(evidence)],
    }
    if asked.explain:
        data["explanation"] = None if explanation is None else explanation.to_json()
    if asked.canonical or windows:
        truth = reference
        if not isinstance(reference, PeerReference):
            reference.close()  # a large model is not held twice
            exact = replace(candidate.numerics, activation="f32", cache="f32")
            truth = open_oracle(candidate.model, exact, asked.capacity(len(ids)), device)
        if asked.canonical:
            data["canonical"] = canonical_argmaxes(candidate, truth).to_json()
            data["canonical"]["reference"] = truth.name
        if windows:
            data["text"] = text_statistics(candidate, truth, windows).to_json()
        truth.close()
    else:
        reference.close()
    return Findings(errors, explanation, data)


# -- the ladder ------------------------------------------------------------------------------------


def ladder(
    model: Model,
    ids: Sequence[int],
    *,
    backend: str = "auto",
    device: int = 0,
    tokens: int = 32,
    rule: StoppingRule = _RULE,
    progress: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Climb every rung of a backend: drift first, then the guard, then time.

    Returns the ``ladder`` JSON. A rung whose guard rejects has its drift and no time.
    """
    chosen = chosen_backend(backend)
    watched = watched_gpu(chosen, device)
    instruments = instruments_of(device, watched)
    oracles = _Oracles(model, len(ids) + tokens, device)
    rungs, ran = [], {}
    decoder: Decoder | None = None
    try:
        tracks: dict[tuple[str, str], Track] = {}
        every = all_numerics(chosen)
        for activation in ("q8_k", "f32"):  # the last one stays open for the rungs
            for cache in sorted({numerics.cache for numerics in every}):
                progress(f"reference with {activation} activations, {cache} cache")
                tracks[activation, cache] = oracle_track(oracles.of(activation, cache), ids)
        for numerics in every:
            last, decoder = decoder, None  # closed, whatever comes
            decoder = turned_to(
                last,
                model,
                backend=chosen,
                numerics=numerics.name,
                capacity=len(ids) + tokens,
                device=device,
            )
            got = decoder_track(decoder, ids)
            drifts = {
                activation: drift(got, tracks[activation, numerics.cache])
                for activation in ("f32", "q8_k")
            }
            oracle = oracles.of(numerics.oracle_activation, numerics.cache)
            rung = _timed(decoder, oracle, ids, tokens, drifts, instruments, rule)
            ran = dict(decoder.ran())
            rungs.append(rung)
            progress(f"{numerics.name}: {'rejected' if rung.reasons else 'accepted'}")
    finally:
        if decoder is not None:
            decoder.close()
        oracles.close()
        if watched is not None:
            watched.close()
    return {
        "schema": "moe-harness/ladder/1",
        "backend": chosen,
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "layers": model.config.layers,
            "experts": model.config.experts,
            "top_k": model.config.top_k,
        },
        "prompt_ids": list(ids),
        "tokens_timed": tokens,
        "said": _SAID,
        "rungs": [rung.to_json() for rung in rungs],
        "ran": {**ran, **provenance()},
    }


class _Oracles:
    """One oracle at a time: a large model is not held twice."""

    def __init__(self, model: Model, capacity: int, device: int) -> None:
        self._model, self._capacity, self._device = model, capacity, device
        self._kind: tuple[str, str] | None = None
        self._open: Oracle | None = None

    def of(self, activation: str, cache: str) -> Oracle:
        """Return the oracle of that kind; the last one is closed if it is another."""
        if self._open is None or self._kind != (activation, cache):
            self.close()
            some = all_numerics("cpu")[0]
            kind = replace(some, activation=activation, cache=cache)
            self._open = open_oracle(self._model, kind, self._capacity, self._device)
            self._kind = activation, cache
        return self._open

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open.close()
        self._open = None


def _timed(
    decoder: Decoder,
    oracle: Oracle,
    ids: Sequence[int],
    tokens: int,
    drifts: dict[str, Drift],
    instruments: Any,  # noqa: ANN401 - ``harness.meter.instruments.Instruments``
    rule: StoppingRule,
) -> Rung:
    seen: list[Evidence] = []

    def check(
        candidate: Decoder,
        decoded: Sequence[int],
        cache: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    ) -> Evidence:
        seen.append(guard(candidate, oracle, decoded, cache=cache))
        return seen[-1]

    numerics: Numerics = decoder.numerics
    workload = Workload(tuple(ids), 0, tokens)
    try:
        measured = measure_decode(decoder, workload, check, instruments=instruments, rule=rule)
    except Rejected as rejected:
        judged = seen[-1].judged if seen else ()
        return Rung(numerics, drifts, tuple(rejected.reasons), judged, None)
    microseconds: dict[str, object] = {
        "median": 1000 * measured.time.median,
        "p99": 1000 * measured.time.p99,
        "samples": len(measured.time.samples),
        "stopped_by": measured.stopped_by,
    }
    return Rung(numerics, drifts, (), seen[-1].judged, microseconds)
