"""The plugin as another project has it: a wheel, an empty project, stage files of another program.

The stage files are written here byte by byte, by FACTS' layout, without this package's writer.
"""

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LAYERS, POSITIONS, HIDDEN, EXPERTS, TOP_K, VOCAB = 4, 5, 32, 16, 3, 50


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked: what ``pip install`` would put into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site-packages")
    return folder / "site-packages"


def stages(seed=0):
    """What a decoder might have seen: ``{path: float32 [positions, values]}``."""
    rng = np.random.default_rng(seed)
    seen = {"lm_head": rng.standard_normal((POSITIONS, VOCAB))}
    for layer in range(LAYERS):
        weights = np.sort(rng.random((POSITIONS, TOP_K)) + 0.1)[:, ::-1]
        ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(POSITIONS)])
        seen[f"layer-{layer}/moe_router"] = weights / weights.sum(1, keepdims=True)
        seen[f"layer-{layer}/moe_router_indices"] = ids
        seen[f"layer-{layer}/moe_ffn_out"] = rng.standard_normal((POSITIONS, HIDDEN))
    return {path: np.asarray(values, dtype="<f4") for path, values in seen.items()}


def write(folder, seen):
    for path, values in seen.items():
        layer = int(path.split("/")[0][6:]) if "/" in path else 0xFFFFFFFF
        target = folder / f"{path}.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        header = b"APRT" + struct.pack("<II", layer, values.size)
        target.write_bytes(header + struct.pack(f"<{values.size}f", *values.reshape(-1).tolist()))


TESTS = """
import sys

def test_cosine(stage_files):
    stage_files("candidate", "reference").per_layer_cosine(0.99)

def test_experts(stage_files):
    stage_files("candidate", "reference").expert_sets_equal()

def test_argmax(stage_files):
    stage_files("candidate", "reference").argmax_agreement()

def test_all_layers_of_the_model_are_there(stage_files):
    stage_files("candidate", "reference", layers=4).per_layer_cosine()

def test_that_it_is_light():
    heavy = {"torch", "numba", "gguf", "transformers"} & set(sys.modules)
    assert not heavy
"""


def run(folder, installed, tests=TESTS):
    """Run an empty project's pytest; the outcome of each test by name, and what was printed."""
    (folder / "test_decoder.py").write_text(tests)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = {
        line.split("::")[1].split(" ")[0]: line.split(" ")[0]
        for line in ran.stdout.splitlines()
        if line.startswith(("PASSED", "FAILED", "ERROR")) and "::" in line
    }
    return outcomes, ran.stdout + ran.stderr


def replaced(seen, path, change):
    return seen | {path: change(seen[path].copy())}


def at(place, value):
    def change(values):
        values[place] = value
        return values

    return change


def other_expert(values):
    """At the last position, the lowest expert that was not chosen for the second that was."""
    values[-1, 1] = min(set(range(EXPERTS)) - set(values[-1].tolist()))
    return values


def turned(values):
    return values[:, ::-1].copy()


GOOD = stages()
CLAIMS = ("test_cosine", "test_experts", "test_argmax", "test_all_layers_of_the_model_are_there")
# What is done to the candidate: the tests that must fail, and what must be said.
CASES = {
    "the same values": (GOOD, (), ()),
    "experts in another order": (replaced(GOOD, "layer-1/moe_router_indices", turned), (), ()),
    "rounding": (
        replaced(GOOD, "layer-2/moe_ffn_out", lambda v: v * np.float32(1.0000001)),
        (),
        (),
    ),
    "one position of one layer is off": (
        replaced(GOOD, "layer-2/moe_ffn_out", at(3, 1.0)),
        (CLAIMS[0], CLAIMS[3]),
        ("moe_ffn_out of layer 2: cosine", "at position 3, floor 0.99"),
    ),
    "NaN": (
        replaced(GOOD, "layer-0/moe_ffn_out", at((1, 5), np.nan)),
        (CLAIMS[0], CLAIMS[3]),
        ("moe_ffn_out of layer 0: not finite at 37",),
    ),
    "one other expert": (
        replaced(GOOD, "layer-3/moe_router_indices", other_expert),
        (CLAIMS[1],),
        ("1 of 5 expert sets differ, first at position 4",),
    ),
    "an expert twice": (
        replaced(GOOD, "layer-3/moe_router_indices", lambda v: np.repeat(v[:, :1], TOP_K, 1)),
        (CLAIMS[1],),
        ("are no 3 experts",),
    ),
    "another token": (
        replaced(GOOD, "lm_head", at((2, 7), 99.0)),
        (CLAIMS[2],),
        ("argmax at position 2: 7 against",),
    ),
    "logits that are not finite": (
        replaced(GOOD, "lm_head", at((2, 7), np.nan)),
        (CLAIMS[2],),
        ("argmax at position 2: none (not finite) against",),
    ),
    "a layer that was not dumped": (
        {path: values for path, values in GOOD.items() if not path.startswith("layer-3")},
        CLAIMS[:2] + CLAIMS[3:],
        ("moe_ffn_out of layer 3: absent in the first",),
    ),
    "no logits": (
        {path: values for path, values in GOOD.items() if path != "lm_head"},
        (CLAIMS[2],),
        ("lm_head: absent in the first",),
    ),
    "a position too few": (
        replaced(GOOD, "layer-1/moe_ffn_out", lambda v: v[:-1]),
        (CLAIMS[0], CLAIMS[3]),
        ("moe_ffn_out of layer 1: 128 values against 160",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_passes_and_fails_where_it_should(case, tmp_path, installed):
    candidate, failing, said = CASES[case]
    write(tmp_path / "candidate", candidate)
    write(tmp_path / "reference", GOOD)
    outcomes, printed = run(tmp_path, installed)
    wanted = {name: "FAILED" if name in failing else "PASSED" for name in CLAIMS}
    assert outcomes == wanted | {"test_that_it_is_light": "PASSED"}, printed
    for words in said:
        assert words in printed
    assert "Traceback" not in printed


def test_layers_that_both_lack_are_missed_where_their_number_is_given(tmp_path, installed):
    fewer = {path: values for path, values in GOOD.items() if not path.startswith("layer-2")}
    for folder in ("candidate", "reference"):
        write(tmp_path / folder, fewer)
    outcomes, printed = run(tmp_path, installed)
    assert outcomes["test_cosine"] == "PASSED"
    assert outcomes["test_all_layers_of_the_model_are_there"] == "FAILED"
    assert "moe_ffn_out of layer 2: absent in both" in printed


BAD = {
    "no such folder": ("nowhere", {}, "nowhere is no folder"),
    "positions that nobody tells": ("bare", {}, "do not tell how many positions"),
    "positions that do not come out even": ("bare", {"positions": 7}, "are no 7 positions"),
    "a damaged file": ("damaged", {}, "truncated or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_fails_in_one_line(case, tmp_path, installed):
    name, arguments, said = BAD[case]
    bare = {path: values for path, values in GOOD.items() if "moe_router" not in path}
    write(tmp_path / "bare", bare)
    write(tmp_path / "damaged", GOOD)
    damaged = tmp_path / "damaged" / "lm_head.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    tests = f"def test_it(stage_files):\n    files = stage_files({name!r}, {name!r}, **{arguments})"
    outcomes, printed = run(tmp_path, installed, f"{tests}\n    files.per_layer_cosine()\n")
    assert outcomes == {"test_it": "FAILED"}
    assert said in printed
    assert "Traceback" not in printed
    assert "pytest_plugin.py" not in printed


def test_what_nothing_was_compared_for_does_not_hold(tmp_path, installed):
    only_logits = {"lm_head": GOOD["lm_head"]}
    for folder in ("candidate", "reference"):
        write(tmp_path / folder, only_logits)
    claims = ("per_layer_cosine()", "expert_sets_equal()", "argmax_agreement()")
    opened = f'stage_files("candidate", "reference", positions={POSITIONS})'
    tests = "\n".join(
        f"def test_{claim[:6]}(stage_files):\n    {opened}.{claim}" for claim in claims
    )
    outcomes, printed = run(tmp_path, installed, tests)
    assert outcomes == {"test_per_la": "FAILED", "test_expert": "FAILED", "test_argmax": "PASSED"}
    assert "neither dump holds moe_ffn_out: nothing was compared" in printed
