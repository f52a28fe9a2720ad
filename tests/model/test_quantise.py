"""Quantising, read back by the ``gguf`` package: its error beside round-to-nearest."""

import gguf
import numpy as np
import pytest

from harness.model import FORMATS
from harness.model.quantise import quantise, round_to_nearest
from harness.model.quants import dequantise

BLOCKED = ("Q4_K", "Q6_K", "Q8_0")
# Relative RMS error on normal values, of the search and of round-to-nearest.
ERRORS = {"Q4_K": (0.0720, 0.0785), "Q6_K": (0.01732, 0.01927), "Q8_0": (0.00500, 0.00536)}


def rows(draw="normal", shape=(64, 2048)):
    return getattr(np.random.default_rng(0), draw)(size=shape).astype(np.float32)


def error(encode, values, fmt):
    back = dequantise(encode(values, fmt), FORMATS[fmt]).astype(np.float64)
    return np.linalg.norm(back - values) / np.linalg.norm(values)


@pytest.mark.parametrize("fmt", BLOCKED)
def test_the_errors_stated(fmt):
    searched, plain = ERRORS[fmt]
    assert error(quantise, rows(), fmt) == pytest.approx(searched, rel=0.005)
    assert error(round_to_nearest, rows(), fmt) == pytest.approx(plain, rel=0.005)


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "standard_cauchy"])
@pytest.mark.parametrize("fmt", BLOCKED)
def test_the_search_is_never_worse_than_round_to_nearest(fmt, draw):
    values = rows(draw, (16, 1024))
    assert error(quantise, values, fmt) <= error(round_to_nearest, values, fmt)


def test_q8_0_is_no_worse_than_the_gguf_packages():
    theirs = gguf.quants.quantize(rows(), FORMATS["Q8_0"].gguf_type)
    back = gguf.quants.dequantize(theirs, FORMATS["Q8_0"].gguf_type)
    assert error(quantise, rows(), "Q8_0") < np.linalg.norm(back - rows()) / np.linalg.norm(rows())


@pytest.mark.parametrize("encode", [quantise, round_to_nearest])
@pytest.mark.parametrize("fmt", BLOCKED)
def test_each_value_is_within_half_a_step_of_its_group(encode, fmt):
    values = rows(shape=(8, 512))
    back = dequantise(encode(values, fmt), FORMATS[fmt])
    group, steps = {"Q4_K": (32, 15), "Q6_K": (16, 62), "Q8_0": (32, 254)}[fmt]
    a, b = (part.reshape(-1, group) for part in (values, back))
    span = np.maximum(a.max(1), 0) - np.minimum(a.min(1), 0)
    if fmt != "Q4_K":
        span = 2 * np.abs(a).max(1)
    # The scales are themselves rounded, and the search may clip an extreme to serve the rest.
    assert (np.abs(a - b).max(1) <= 1.8 * span / steps).all()


@pytest.mark.parametrize("fmt", [*BLOCKED, "F32", "F16", "BF16"])
def test_zeros_stay_and_extremes_do_not_overflow(fmt):
    zeros = np.zeros((2, 512), np.float32)
    assert not dequantise(quantise(zeros, fmt), FORMATS[fmt]).any()
    values = rows(shape=(2, 512))
    values[0] *= 1e-20
    values[1] *= 1e3
    back = dequantise(quantise(values, fmt), FORMATS[fmt])
    assert np.isfinite(back).all()
    assert np.linalg.norm(back[1] - values[1]) < 0.1 * np.linalg.norm(values[1])


@pytest.mark.parametrize("fmt", ["F16", "BF16", "F32"])
def test_unblocked_formats_are_the_gguf_packages_to_the_bit(fmt):
    theirs = gguf.quants.quantize(rows(), FORMATS[fmt].gguf_type)
    assert quantise(rows(), fmt).tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("values", "fmt", "words"),
    [
        (np.full((1, 256), np.nan), "Q4_K", "NaN or infinity"),
        (np.full((1, 256), np.inf), "Q6_K", "NaN or infinity"),
        (np.ones((1, 255)), "Q4_K", "needs a positive multiple of 256"),
        (np.ones((1, 0)), "Q8_0", "needs a positive multiple"),
        (np.ones(256), "Q8_0", "expected"),
        (np.ones((1, 256)), "Q5_K", "known formats"),
        (np.full((1, 256), 1e30), "Q6_K", "does not fit f16"),
        (np.full((1, 256), 1e6), "F16", "does not fit F16"),
    ],
)
def test_what_no_format_can_hold_is_an_error(values, fmt, words):
    with pytest.raises(ValueError, match=words):
        quantise(values, fmt)


@pytest.mark.parametrize("fmt", BLOCKED)
def test_a_row_does_not_depend_on_its_neighbours(fmt):
    values = rows(shape=(700, 1024))  # more than one chunk
    whole = quantise(values, fmt)
    assert whole[5:6].tobytes() == quantise(values[5:6], fmt).tobytes()
    assert whole[-1:].tobytes() == quantise(values[-1:], fmt).tobytes()
