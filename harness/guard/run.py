"""Running a candidate and the oracle over one prompt, and gathering the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import BadInput
from harness.guard.distance import cosine, rel_l2, worst_row
from harness.guard.evidence import Evidence, PassEvidence
from harness.guard.peer import PeerReference
from harness.guard.replay import CACHED_STAGES, CandidateReplay, cached_errors
from harness.guard.routing import Swap, compare_sets, renormalised, valid_ids
from harness.guard.verdict import judge
from harness.stages import REQUIRED, Capture, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.decoder import Decoder
    from harness.numerics import Numerics, Tolerance
    from harness.reference import Oracle

MODES = ("free", "forced", "both")
_CANDIDATE_PLAN = Plan(frozenset((*REQUIRED, "embedding")))
_ORACLE_PLAN = Plan(frozenset((*REQUIRED, "embedding", "attn_out")))

# Attention may add little to a long residual, and then its own rounding is lost in the
# residual's: errors count relative to what was added, but to no less than this share of it.
_RESIDUAL_SHARE = 0.05


@dataclass
class _Pass:
    """Captures and logits of one decoder over the prompt."""

    captures: list[Capture] = field(default_factory=list)
    logits: list[NDArray[np.floating]] = field(default_factory=list)

    def stage(self, name: str, layer: int | None = None) -> NDArray[np.float64]:
        """Return float64 ``[positions, values]``."""
        return np.stack([capture[name, layer] for capture in self.captures]).astype(np.float64)

    def ids(self, layer: int, position: int) -> NDArray[np.generic]:
        return self.captures[position]["moe_router_indices", layer]

    def non_finite(self) -> int:
        """Values that are NaN or infinite, of every required stage."""
        return sum(
            int((~np.isfinite(capture[key])).sum())
            for capture in self.captures
            for key in capture.keys()  # noqa: SIM118 - a capture is no mapping
            if key[0] in REQUIRED
        )

    @property
    def layers(self) -> int:
        """Layers that were seen."""
        keys = self.captures[0].keys()
        return 1 + max(layer for _, layer in keys if layer is not None)

    def inputs(self) -> NDArray[np.float32]:
        """What each layer started from, ``[positions, layers, hidden]``."""
        stages = [self.stage("embedding", layer) for layer in range(self.layers)]
        return np.stack(stages, axis=1).astype(np.float32)

    def handed_on(self) -> int:
        """Values of layers' inputs that are not what the layer above gave; NaN is none."""
        return sum(
            int((self.stage("embedding", n) != self.stage("post_ffn_residual", n - 1)).sum())
            for n in range(1, self.layers)
        )

    def finite(self) -> bool:
        """Whether every logit is a finite number."""
        return all(bool(np.isfinite(row).all()) for row in self.logits)

    def lengths(self) -> dict[str, int]:
        """Values a position: of a layer's output, and of the logits."""
        return {
            "moe_ffn_out": self.stage("moe_ffn_out", 0).shape[1],
            "lm_head": len(self.logits[0]),
        }


def guard(
    candidate: Decoder,
    oracle: Oracle,
    ids: Sequence[int],
    *,
    mode: str = "both",
    cache: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    plan: Plan | None = None,
    keep: Callable[[list[Capture], list[Capture]], None] | None = None,
) -> Evidence:
    """Decode ``ids`` with candidate and oracle, compare everything, judge.

    The candidate's free-running pass comes first, before the oracle has computed anything that a
    candidate could find lying in memory.

    Parameters
    ----------
    candidate, oracle
        Both are reset. The candidate's numerics brings the tolerance. A candidate whose
        activations are rounded is judged against an oracle that rounds alike: teacher-forced, and
        free-running layer by layer, each on the input that it had.
    ids
        The prompt; every position is compared.
    mode
        ``free``, ``forced`` or ``both``.
    cache
        Keys and values that both start from, float32 ``[layers, depth, kv_heads, head_dim]``.
    plan
        Further stages that ``keep`` wants to see.
    keep
        Called with the captures of candidate (free-running) and oracle (after replay).

    Raises
    ------
    BadInput
        For an empty prompt, or a mode that leaves nothing to judge.

    """
    tolerance = tolerance_against(candidate.numerics, oracle)
    if not ids:
        raise BadInput("the prompt is empty; the guard needs at least one token")
    if mode not in MODES:
        raise BadInput(f"mode {mode!r}, expected one of {', '.join(MODES)}")
    judged = tuple(
        name
        for name in ("free", "forced")
        if mode in (name, "both") and getattr(tolerance, name) is not None
    )
    if not judged:
        raise BadInput(
            f"{candidate.numerics.name} against {oracle.name} is judged teacher-forced only; use "
            "--mode forced or both"
        )
    extra = plan.stages if plan is not None else frozenset()
    if candidate.numerics.cache == "f16":
        extra = extra.union(CACHED_STAGES)
    shown = Plan(_CANDIDATE_PLAN.stages | extra)
    free_evidence = forced_evidence = own_evidence = None
    free = _run(candidate, ids, cache, shown)
    truths = _Truths(oracle, ids, cache, Plan(_ORACLE_PLAN.stages | extra), tolerance)
    # Each pass is held against an oracle that replays it: what falls either way by rounding may
    # fall otherwise in the other pass.
    truth, replay = truths.of(free if "free" in judged else None)
    finite = truth.finite()
    entered = rel_l2(free.stage("embedding", 0), truth.stage("embedding", 0))
    if mode != "forced":
        if keep is not None:
            keep(free.captures, truth.captures)
        free_evidence = _Comparison(oracle, truth, replay, tolerance)(free, forced=False)
        if "free" not in judged:
            # What is timed is the free-running pass. Where its drift is too large to be judged as a
            # whole, each layer of it is, on the input that it had.
            inputs = free.inputs()
            own, replay = truths.of(free, inputs)
            finite = finite and own.finite()
            own_evidence = _Comparison(oracle, own, replay, tolerance)(free, forced=True)
    main = free
    if mode != "free":
        inputs = truth.inputs()
        forced = _run(candidate, ids, cache, shown, inputs)
        truth, replay = truths.of(forced, inputs)
        finite = finite and truth.finite()
        forced_evidence = _Comparison(oracle, truth, replay, tolerance)(forced, forced=True)
        main = free if mode == "both" else forced
    findings, verdict = judge(
        tolerance,
        free_evidence if "free" in judged else None,
        forced_evidence if "forced" in judged else None,
        oracle_finite=finite,
        entered=entered,
        own=own_evidence,
        handed_on=None if mode == "forced" else free.handed_on(),
    )
    return Evidence(
        reference=oracle.name,
        backend=candidate.backend,
        numerics=candidate.numerics.name,
        mode=mode,
        prompt_ids=tuple(ids),
        cached_positions=0 if cache is None else cache[0].shape[1],
        free=free_evidence,
        forced=forced_evidence,
        judged=judged,
        findings=findings,
        verdict=verdict,
        ran=dict(candidate.ran()),
        model={
            "name": oracle.model.name,
            "fingerprint": oracle.model.fingerprint,
            "layers": oracle.config.layers,
            "hidden": oracle.config.hidden,
            "vocab": oracle.config.vocab,
        },
        candidate_logits=np.stack(main.logits).astype(np.float32, copy=False),
    )


def tolerance_against(candidate: Numerics, oracle: Oracle) -> Tolerance:
    """How far a candidate may be from the oracle, or from a peer in its place."""
    if isinstance(oracle, PeerReference):
        return oracle.tolerance(candidate)
    return candidate.tolerance


def _run(
    decoder: Decoder,
    ids: Sequence[int],
    cache: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    plan: Plan,
    inputs: NDArray[np.float32] | None = None,
) -> _Pass:
    """One pass; ``inputs`` ``[positions, layers, hidden]`` make it teacher-forced."""
    decoder.reset()
    if cache is not None:
        decoder.fill_cache(*cache)
    done = _Pass()
    for position, token in enumerate(ids):
        capture = Capture(plan)
        forced = None if inputs is None else np.ascontiguousarray(inputs[position])
        done.logits.append(decoder.step(token, capture, forced))
        done.captures.append(capture)
    return done


class _Truths:
    """The oracle's passes over one prompt."""

    def __init__(
        self,
        oracle: Oracle,
        ids: Sequence[int],
        cache: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        plan: Plan,
        tolerance: Tolerance,
    ) -> None:
        self._oracle, self._ids, self._plan, self._tolerance = oracle, ids, plan, tolerance
        self._start = 0 if cache is None else cache[0].shape[1]
        oracle.reset()
        if cache is not None:
            oracle.fill_cache(*cache)

    def of(
        self, replayed: _Pass | None, inputs: NDArray[np.float32] | None = None
    ) -> tuple[_Pass, CandidateReplay]:
        """One pass, teacher-forced with ``inputs``; ``replayed`` decides what rounding decides."""
        oracle = self._oracle
        oracle.rewind(self._start)
        captures = None if replayed is None else replayed.captures
        replay = CandidateReplay(captures, self._tolerance, self._start)
        done = oracle.run(self._ids, self._plan, inputs, replay)
        return _Pass(done.captures, list(done.logits)), replay


class _Comparison:
    """Compares a pass of a candidate with one of the oracle."""

    def __init__(
        self, oracle: Oracle, truth: _Pass, replay: CandidateReplay, tolerance: Tolerance
    ) -> None:
        self.oracle, self.truth, self.replay = oracle, truth, replay
        self.tolerance = tolerance
        self.seen, self.epsilon = replay.seen, tolerance.tie_epsilon
        self.layers = oracle.config.layers
        self.positions = len(truth.captures)

    def __call__(self, got: _Pass, *, forced: bool) -> PassEvidence:
        shape = (self.layers, self.positions)
        cosines, errors, attention, residual, weight, weight_cosine = (
            np.empty(shape) for _ in range(6)
        )
        moe_row, attention_row = np.empty(self.layers), np.empty(self.layers)
        router_sum = np.empty(shape)
        cached: dict[str, NDArray[np.float64]] = {}
        if self.tolerance.cache_epsilon:
            cached = {"keys": np.empty(shape), "values": np.empty(shape)}
        swaps: list[Swap] = []
        for layer in range(self.layers):
            found, weight[layer], weight_cosine[layer] = self._routing(got, layer)
            router_sum[layer] = [
                capture["moe_router", layer].astype(np.float64).sum() for capture in got.captures
            ]
            swaps.extend(swap for swap in found if swap is not None)
            moe, true_moe = got.stage("moe_ffn_out", layer), self._moe(got, layer, found)
            cosines[layer], errors[layer] = cosine(moe, true_moe), rel_l2(moe, true_moe)
            moe_row[layer] = worst_row(moe, true_moe)
            after, true_after = (p.stage("post_attn_residual", layer) for p in (got, self.truth))
            scale = true_after
            if forced:
                added = self.truth.stage("attn_out", layer)
                scale = np.hypot(added, _RESIDUAL_SHARE * true_after)
            attention[layer] = rel_l2(after, true_after, scale)
            attention_row[layer] = worst_row(after, true_after, scale)
            # What the layer hands on is the sum of the two parts; with other experts than the
            # oracle's it is taken from the parts, not from the oracle's own layer.
            out = got.stage("post_ffn_residual", layer)
            residual[layer] = rel_l2(out, true_after + true_moe)
            if cached:
                found_errors = cached_errors(
                    got.captures, self.truth.captures, layer, self.oracle.config.head_dim
                )
                for what, values in found_errors.items():
                    cached[what][layer] = values
        logits, true_logits = np.stack(got.logits).astype(np.float64), np.stack(self.truth.logits)
        margins = self._argmaxes(logits, true_logits)
        return PassEvidence(
            moe_cosine=cosines,
            moe_rel_l2=errors,
            moe_row=moe_row,
            attention_rel_l2=attention,
            attention_row=attention_row,
            residual_rel_l2=residual,
            router_weight=weight,
            router_cosine=weight_cosine,
            routing_margin=self._routing_margins(),
            swaps=tuple(swaps),
            final_norm_rel_l2=rel_l2(got.stage("final_norm"), self.truth.stage("final_norm")),
            logits_rel_l2=rel_l2(logits, true_logits),
            logits_cosine=cosine(logits, true_logits),
            logits_row=worst_row(logits, true_logits),
            argmax_agree=self.positions - len(margins),
            argmax_margins=tuple(margins),
            cached_rel_l2=cached,
            cached_values=self.replay.cached_values,
            cached_replayed=self.replay.cached_replayed,
            router_sum=router_sum,
            non_finite=got.non_finite(),
            lengths=got.lengths(),
        )

    def _routing(
        self, got: _Pass, layer: int
    ) -> tuple[list[Swap | None], NDArray[np.float64], NDArray[np.float64]]:
        """Compare sets, and weights by expert id (their order may differ among equals)."""
        c = self.oracle.config
        swaps: list[Swap | None] = []
        apart, along = np.full(self.positions, np.inf), np.full(self.positions, -1.0)
        for position in range(self.positions):
            seen, ids = self.seen[layer, position], got.ids(layer, position)
            swaps.append(compare_sets(seen, ids, self.epsilon))
            weights = got.captures[position]["moe_router", layer].astype(np.float64)
            if valid_ids(ids, c.experts, c.top_k) and weights.shape == (c.top_k,):
                truth = renormalised(seen.logits, [int(expert) for expert in ids])
                if np.isfinite(weights).all():
                    apart[position] = np.abs(weights - truth).max()
                along[position] = cosine(weights[None], truth[None])[0]
        return swaps, apart, along

    def _routing_margins(self) -> NDArray[np.float64]:
        """How far the oracle is from another set, ``[layers, positions]``."""
        margins = np.full((self.layers, self.positions), np.inf)
        k = self.oracle.config.top_k
        for (layer, position), seen in self.seen.items():
            if k < len(seen.logits):
                ranked = np.sort(seen.logits)[::-1]
                margins[layer, position] = ranked[k - 1] - ranked[k]
        return margins

    def _moe(self, got: _Pass, layer: int, swaps: Sequence[Swap | None]) -> NDArray[np.float64]:
        """What the experts should have given: of the candidate's set where that is a tie."""
        rows = []
        for position, swap in enumerate(swaps):
            truth = self.truth.captures[position]
            used = {int(expert) for expert in truth["moe_router_indices", layer]}
            own = [int(expert) for expert in self.seen[layer, position].chosen]
            ids = got.ids(layer, position)
            wanted = [int(expert) for expert in ids] if swap is not None and swap.is_tie else own
            if set(wanted) == used or (swap is not None and not swap.is_tie):
                rows.append(truth["moe_ffn_out", layer].astype(np.float64))
            else:
                residual = truth["post_attn_residual", layer].astype(np.float64)
                rows.append(self.oracle.moe(layer, residual, np.array(wanted, np.int64))[1])
        return np.stack(rows)

    def _argmaxes(
        self, logits: NDArray[np.float64], truth: NDArray[np.float64]
    ) -> list[tuple[int, int, int, float, float]]:
        """Positions whose argmax differs: (position, candidate, oracle, margin, bound)."""
        differ = []
        output = self.oracle.model.output
        normed = self.truth.stage("final_norm")
        for position in range(self.positions):
            row = logits[position]
            # A row with NaN has no argmax: it is as far out as can be.
            if not np.isfinite(row).all():
                best = int(truth[position].argmax())
                differ.append((position, -1, best, float("inf"), 0.0))
                continue
            took, best = int(row.argmax()), int(truth[position].argmax())
            if took == best:
                continue
            rows = [output.values(slice(i, i + 1))[0].astype(np.float64) for i in (took, best)]
            reach = np.linalg.norm(rows[0] - rows[1]) * np.linalg.norm(normed[position])
            margin = float(truth[position][best] - truth[position][took])
            differ.append((position, took, best, margin, self.epsilon * float(reach)))
        return differ
