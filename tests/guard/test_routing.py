import numpy as np
import pytest

from harness.guard.routing import compare_sets, renormalised, valid_ids
from harness.reference import Routing

LOGITS = np.array([0.0, 3.0, 1.0, 2.0, 1.0 - 1e-6, -5.0])


def routing(logits=LOGITS, top_k=3):
    rng = np.random.default_rng(0)
    order = np.argsort(-logits, kind="stable")
    return Routing(4, 7, logits, rng.standard_normal(8), rng.standard_normal((6, 8)), order[:top_k])


def test_the_same_set_in_another_order_is_equal():
    assert compare_sets(routing(), np.array([2, 3, 1]), 1e-6) is None


def test_a_swap_within_the_bound_is_a_tie():
    swap = compare_sets(routing(), np.array([1, 3, 4]), 1e-6)
    assert swap.only_candidate == (4,)
    assert swap.only_reference == (2,)
    assert swap.margin == pytest.approx(1e-6)
    assert swap.is_tie
    assert swap.to_json() == [7, [4], [2], pytest.approx(1e-6)]


def test_the_same_swap_with_a_tighter_numerics_is_a_fault():
    assert not compare_sets(routing(), np.array([1, 3, 4]), 1e-9).is_tie


def test_an_expert_ranked_last_taken_at_a_near_tie_is_a_fault():
    swap = compare_sets(routing(), np.array([1, 3, 5]), 1e-6)
    assert swap.margin == pytest.approx(6)
    assert not swap.is_tie


def test_two_swaps_are_judged_by_the_widest_margin():
    swap = compare_sets(routing(), np.array([1, 4, 5]), 1e-6)
    assert swap.margin == pytest.approx(7)  # 2.0 dropped, -5.0 taken


@pytest.mark.parametrize(
    "ids", [[1, 1, 3], [1, 3], [1, 3, 6], [-1, 1, 3], [1.0, 3.0, np.nan], [1.0, 3.0, 2.5]]
)
def test_ids_that_are_no_expert_set_are_a_fault(ids):
    assert not valid_ids(np.array(ids), 6, 3)
    assert not compare_sets(routing(), np.array(ids), 1.0).is_tie


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_oracle_that_is_not_finite_proves_no_tie(bad):
    logits = LOGITS.copy()
    logits[4] = bad
    swap = compare_sets(routing(logits), np.array([0, 1, 5]), 1e-6)
    assert not swap.is_tie
    assert (swap.margin, swap.bound) == (np.inf, 0.0) or np.isfinite(swap.margin)


def test_top_k_of_all_experts_has_no_margin():
    assert compare_sets(routing(top_k=6), np.array([5, 4, 3, 2, 1, 0]), 1e-9) is None


def test_renormalising_over_the_set_is_softmax_over_all_then_renormalising():
    ids = [1, 3, 2]
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum()
    expected = probabilities[ids] / probabilities[ids].sum()
    assert renormalised(LOGITS, ids) == pytest.approx(expected)
