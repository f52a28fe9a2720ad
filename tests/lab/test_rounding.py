"""The limits hold for real float32 sums in any order, and float16 sums break them."""

import numpy as np
import pytest

from harness.lab.rounding import HALF, condition, sum_limit

ROWS, COLUMNS = 400, 768


@pytest.fixture(scope="module")
def terms():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for _ in range(2))
    return a * b  # float32 products, as a kernel without fused multiply-add has them


def in_turn(terms, kind):
    total = np.zeros(len(terms), dtype=kind)
    for column in terms.T:
        total = (total + column).astype(kind)
    return total.astype(np.float64)


def test_no_order_of_float32_is_beyond_the_limit_and_float16_is_far_beyond(terms):
    exact, limit = terms.astype(np.float64).sum(1), sum_limit(terms.astype(np.float64))
    orders = [
        in_turn(terms, np.float32),
        in_turn(terms[:, ::-1], np.float32),
        in_turn(terms[:, np.random.default_rng(1).permutation(COLUMNS)], np.float32),
        terms.sum(1),
    ]
    for got in orders:
        assert (np.abs(got - exact) <= limit).all()
    off = np.abs(in_turn(terms, np.float16) - exact)
    assert np.median(off / limit) > 100
    assert (off <= HALF * limit).all()


def test_condition():
    assert condition(np.array([[3.0, -1.0], [1.0, 1.0], [1.0, -1.0]])).tolist() == [2, 1, np.inf]
