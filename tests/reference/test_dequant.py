import gguf
import numpy as np
import pytest
import torch

from harness.model import FORMATS
from harness.reference.dequant import dequantise


def random_rows(fmt, rng):
    blocks = 1 if fmt.block_values > 1 else 96
    return rng.integers(0, 256, (64, 3, fmt.block_bytes * blocks), dtype=np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_agrees_with_the_gguf_package_on_random_bits(name):
    fmt = FORMATS[name]
    raw = random_rows(fmt, np.random.default_rng(3))
    ours = dequantise(torch.from_numpy(raw), fmt).numpy()
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw.reshape(192, -1), fmt.gguf_type)
        theirs = theirs.reshape(ours.shape).astype(np.float64)
    assert ours.dtype == np.float64
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.9
    # gguf rounds its products to float32, and its difference of two products once more: the
    # error is relative to the larger product, which in a block is near its largest value.
    scale = np.abs(np.where(finite, theirs, 0)).max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        assert (np.abs(np.where(finite, ours - theirs, 0)) <= 3e-7 * scale).all()
    assert (np.isfinite(ours) == finite).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_sees_a_wrong_bit(name):
    fmt = FORMATS[name]
    raw = random_rows(fmt, np.random.default_rng(4))[:1]
    other = raw.copy()
    other[..., fmt.block_bytes // 2] ^= 0x11
    a, b = (dequantise(torch.from_numpy(r), fmt) for r in (raw, other))
    assert not torch.equal(a, b)
