import numpy as np
import pytest

from harness.guard.distance import cosine, rel_l2, worst_row

REFERENCE = np.array([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])


def test_equal_values_are_at_no_distance():
    assert cosine(REFERENCE, REFERENCE) == pytest.approx([1, 1])
    assert not rel_l2(REFERENCE, REFERENCE).any()
    assert worst_row(REFERENCE, REFERENCE) == 0


def test_rel_l2_is_by_position():
    got = REFERENCE.copy()
    got[1, 2] += 0.5
    assert rel_l2(got, REFERENCE) == pytest.approx([0, 0.1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(bad):
    got = REFERENCE.copy()
    got[0, 0] = bad
    assert rel_l2(got, REFERENCE).tolist() == [np.inf, 0]
    assert cosine(got, REFERENCE)[0] == -1
    assert worst_row(got, REFERENCE) == np.inf


def test_zero_vectors():
    zero = np.zeros((1, 3))
    assert cosine(zero, zero) == [1]
    assert cosine(zero, REFERENCE[:1]) == [0]
    assert cosine(REFERENCE[:1], zero) == [0]
    assert rel_l2(zero, zero) == [0]
    assert rel_l2(REFERENCE[:1], zero) == [np.inf]
    assert worst_row(REFERENCE[:1], zero) == np.inf


def test_a_zeroed_row_stands_out_of_2048_where_the_whole_hides_it():
    reference = np.random.default_rng(0).standard_normal((16, 2048))
    got = reference.copy()
    got[:, 700] = 0
    assert rel_l2(got, reference).max() < 0.1
    assert worst_row(got, reference) > 0.7


def test_rounding_of_a_row_near_zero_is_no_alarm():
    reference = np.random.default_rng(0).standard_normal((16, 64))
    reference[:, 5] = 1e-9
    got = reference.copy()
    got[:, 5] += 1e-8
    assert worst_row(got, reference) < 1e-7


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (3,)])
def test_an_empty_or_misshapen_comparison_is_an_error(shape):
    with pytest.raises(ValueError, match="expected two equal, non-empty"):
        rel_l2(np.zeros(shape), np.zeros(shape))
    with pytest.raises(ValueError, match="expected two equal, non-empty"):
        cosine(REFERENCE, REFERENCE[:1])
