"""Compiling beforehand: each compilation once, every numerics and fault among them."""

from dataclasses import replace

import pytest

from harness.backends.cuda import __main__ as precompile
from harness.backends.cuda.decoder import PLANTS
from harness.numerics import CUDA_NUMERICS
from kernels import FAMILIES


def test_what_compiles_alike_is_compiled_once(small_model):
    config = small_model.config
    jobs = precompile.needed([config, config, replace(config, head_dim=128)])
    keys = [(family.name, *family.options(variant, heads)) for family, variant, heads in jobs]
    assert len(set(keys)) == len(keys)
    assert {family.name for family, _, _ in jobs} == {family.name for family in FAMILIES}
    assert {variant.plant for _, variant, _ in jobs} >= set(PLANTS) - {"cached_output"}
    # Attention is compiled for both shapes of heads, the rest does not depend on them.
    clean = [key for key, (_, variant, _) in zip(keys, jobs, strict=True) if not variant.plant]
    assert sum(key[0] == "attention" for key in clean) == 2
    assert sum(key[0] == "argmax" for key in clean) == 1
    assert sum(key[0] == "matvec" for key in clean) < len(CUDA_NUMERICS)


def test_every_job_is_compiled_and_counted(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(precompile, "ptx", lambda *job: done.append(job))
    assert precompile.main(["--arch", "sm_90"]) == 0
    assert capsys.readouterr().out == f"{len(done)} compilations for sm_90\n"
    assert {arch for *_, arch in done} == {"sm_90"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--arch", "sm_90", "/nowhere.gguf"], "cannot be read"), (["--arch", "sm_1"], "sm_1")],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, said, capsys):
    assert precompile.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
