"""Models that the tests share."""

import ctypes
import functools
import os
from pathlib import Path

import numpy as np
import pytest

from harness.model import FORMATS, Config, Model, Tensor
from harness.model.config import tensor_shapes
from harness.model.quantise import quantise
from harness.model.synth import PRESETS, synthesise

# Tests time for form's sake, on machines that may be busy; nothing is compared with it.
os.environ["MOE_HARNESS_BUSY"] = "1"

SMALL = Config("qwen3moe", 6, 256, 4, 2, 64, 16, 4, 256, 517, 1e-6, 1e6, 256, tied_output=False)


def k_quant_model(config, seed=0):
    """Random weights in memory, Q4_K with Q6_K in some places; residual outputs scaled."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape) * shape[-1] ** -0.5
        fmt = "F32"
        if "norm" in name:
            values = 1 + 0.2 * rng.standard_normal(shape)
        elif "gate_inp" not in name:
            fmt = "Q6_K" if "down" in name or "attn_v" in name or name[:6] == "output" else "Q4_K"
        if "attn_output" in name or "down" in name:
            values /= (2 * config.layers) ** 0.5
        rows = values.astype(np.float32).reshape(-1, shape[-1])
        raw = rows.view(np.uint8) if fmt == "F32" else quantise(rows, fmt)
        blocks = np.ascontiguousarray(raw).reshape(*shape[:-1], -1)
        tensors[name] = Tensor(name, FORMATS[fmt], shape, blocks)
    return Model(Path("random.gguf"), config, tensors, {})


@pytest.fixture(scope="session")
def small_model():
    return k_quant_model(SMALL)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return synthesise("tiny", tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def odd_shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return {
        name: synthesise(name, folder / f"{name}.gguf") for name in PRESETS if name[:3] == "odd"
    }


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


@functools.cache
def why_no_gpu():
    """Ask the driver itself, so that no missing package passes for a missing GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver here (libcuda.so.1)"
    if status := cuda.cuInit(0):
        return f"no GPU that CUDA can use here (cuInit: {status})"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "no GPU here"
