"""Compiling: a cache that cannot tear, errors in one line, the same options by either route."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kernels import FAMILIES, argmax, attention, compiler, experts, router
from kernels.compiler import CompileError, find_nvcc, ptx, source_hash
from kernels.family import Family, Heads, Variant, struct

HEADS = Heads()
CODE = """
#include "common.cuh"
extern "C" __global__ void turn(int* x) { *x = lane_id(); }
"""


def compile_argmax(cache, **options):
    return ptx(argmax.FAMILY, Variant(), HEADS, "sm_90", cache=cache, **options)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """An nvcc, first on PATH, that writes its arguments down and compiles to them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Cuda compilation tools, release 13.0"; exit; fi\n'
        f'printf "%s\\n" "$@" > "{folder}/arguments"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo fake > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert find_nvcc() == script
    return folder / "arguments"


@pytest.fixture
def fake_pycuda(monkeypatch):
    """A PyCUDA that writes down what it is to compile; ``complaint`` makes it refuse."""
    calls = []
    package, compiling, driver = map(ModuleType, ("pycuda", "pycuda.compiler", "pycuda.driver"))
    driver.CompileError = type("CompileError", (Exception,), {"stderr": None})
    package.compiler, package.driver = compiling, driver
    calls_of = {"complaint": None}

    def compile_(source, **options):
        calls.append((source, options))
        if calls_of["complaint"] is not None:
            error = driver.CompileError("nvcc compilation of kernel.cu failed")
            error.stderr = calls_of["complaint"]
            raise error
        return b"fake\n"

    compiling.compile = compile_
    for module in (package, compiling, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls, calls_of


# -- the cache -------------------------------------------------------------------------------------


def test_what_is_cached_is_not_compiled_again(fake_nvcc, tmp_path):
    first = compile_argmax(tmp_path / "cache")
    fake_nvcc.unlink()
    assert compile_argmax(tmp_path / "cache") == first == b"fake\n"
    assert not fake_nvcc.exists()


def test_the_key_covers_all_that_the_result_depends_on(fake_nvcc, tmp_path, monkeypatch):
    assert not fake_nvcc.exists()
    shutil.copy(experts.FAMILY.path, tmp_path / "experts.cu")
    family, cache = replace(experts.FAMILY, folder=tmp_path), tmp_path / "cache"

    def compiled(heads=HEADS, arch="sm_90", **variant):
        ptx(family, Variant(**variant), heads, arch, cache=cache)
        return len(list(cache.iterdir()))

    assert compiled() == 1
    assert compiled() == 1
    assert compiled(Heads(64, 4)) == 1  # experts have no heads
    assert compiled(plant="stale_kv") == 1  # nor that fault
    assert compiled(arch="sm_80") == 2
    assert compiled(accumulator="f64") == 3
    assert compiled(softmax="f64") == 4
    assert compiled(plant="uniform_weights") == 5
    (tmp_path / "experts.cu").write_text(CODE)
    assert compiled() == 6
    (tmp_path / "of_its_own.cuh").write_text("// a header beside it\n")
    assert compiled() == 7
    monkeypatch.setattr(compiler, "compiler_version", lambda _nvcc: (13, 1))
    assert compiled() == 8
    # The router knows none of what experts alone do.
    family, cache = router.FAMILY, tmp_path / "router's"
    for variant in ({}, {"swiglu": "f64"}, {"softmax": "f64"}, {"plant": "uniform_weights"}):
        assert compiled(**variant) == 1


def test_threads_that_compile_the_same_at_once_all_get_it_whole(fake_nvcc, tmp_path):
    cache, workers = tmp_path / "cache", 8
    together = threading.Barrier(workers)

    def compiled(_):
        together.wait()
        return compile_argmax(cache)

    with ThreadPoolExecutor(workers) as pool:
        assert set(pool.map(compiled, range(workers))) == {b"fake\n"}
    assert fake_nvcc.exists()
    assert [path.suffix for path in cache.iterdir()] == [".ptx"]


def test_processes_that_compile_the_same_at_once_all_get_it_whole(nvcc, tmp_path):
    assert nvcc.is_file()
    script = (
        "import sys; from pathlib import Path; from kernels import argmax\n"
        "from kernels.compiler import ptx; from kernels.family import Heads, Variant\n"
        "out = ptx(argmax.FAMILY, Variant(), Heads(), 'sm_90', cache=Path(sys.argv[1]))\n"
        "sys.stdout.buffer.write(out)"
    )
    command = [sys.executable, "-c", script, tmp_path / "cache"]
    root = Path(compiler.__file__).parents[1]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(3)]
    answers = {process.communicate()[0] for process in running}
    (cached,) = (tmp_path / "cache").iterdir()
    assert answers == {cached.read_bytes()}
    assert b".entry argmax" in cached.read_bytes()


@pytest.mark.parametrize("place", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.usefixtures("fake_nvcc")
def test_a_crash_in_the_middle_of_a_write_leaves_nothing(tmp_path, monkeypatch, place, error):
    def crash(*_):
        raise error

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(*place, crash)
        if isinstance(error, OSError):  # costs time, not results
            assert compile_argmax(cache) == b"fake\n"
        else:
            with pytest.raises(KeyboardInterrupt):
                compile_argmax(cache)
    assert list(cache.iterdir()) == []
    assert compile_argmax(cache) == b"fake\n"
    assert len(list(cache.iterdir())) == 1


def test_half_a_file_of_a_killed_process_is_never_read(fake_nvcc, tmp_path):
    cache = tmp_path / "cache"
    compile_argmax(cache)
    (whole,) = cache.iterdir()
    whole.rename(f"{whole}.tmp-killed").write_bytes(b"fa")
    fake_nvcc.unlink()
    assert compile_argmax(cache) == b"fake\n"
    assert fake_nvcc.exists()


@pytest.mark.usefixtures("fake_nvcc")
def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    (tmp_path / "file").touch()
    assert compile_argmax(tmp_path / "file" / "cache") == b"fake\n"
    assert compile_argmax(tmp_path / "file" / "cache") == b"fake\n"


# -- what goes wrong is told in a line -------------------------------------------------------------


def test_a_source_that_does_not_compile(nvcc, tmp_path):
    assert nvcc.is_file()
    family = Family("broken", {}, folder=tmp_path)
    family.path.write_text("\n__global__ void broken() { undeclared = 1; }\n")
    with pytest.raises(CompileError, match=r"undeclared") as error:
        ptx(family, Variant(), HEADS, "sm_90", cache=tmp_path)
    assert one_line(error).startswith("broken.cu does not compile for sm_90: ")
    assert "broken.cu(2): error: " in str(error.value)
    assert list(tmp_path.iterdir()) == [family.path]


def test_pycuda_is_told_apart_from_its_complaint(fake_nvcc, fake_pycuda, tmp_path):
    assert not fake_nvcc.exists()
    fake_pycuda[1]["complaint"] = "kernel.cu(2): warning: x\nkernel.cu(9): error: no such thing\n"
    with pytest.raises(CompileError) as error:
        compile_argmax(tmp_path, with_pycuda=True)
    assert one_line(error) == (
        "argmax.cu does not compile for sm_90: kernel.cu(9): error: no such thing"
    )


def test_a_compiler_that_dies_without_a_word(fake_nvcc, tmp_path):
    fake_nvcc.with_name("nvcc").write_text("#!/bin/sh\necho release 13.0\nexit 3\n")
    with pytest.raises(CompileError) as error:
        compile_argmax(tmp_path)
    assert one_line(error) == "argmax.cu does not compile for sm_90: release 13.0"


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a", "90", ""])
def test_an_unknown_architecture(tmp_path, arch):
    with pytest.raises(CompileError, match=r"expected one of sm_80, .*sm_120") as error:
        ptx(argmax.FAMILY, Variant(), HEADS, arch, cache=tmp_path)
    assert one_line(error).startswith(f"architecture {arch}, ")


@pytest.mark.usefixtures("fake_nvcc")
def test_a_source_that_is_not_there(tmp_path):
    family = Family("absent", {}, folder=tmp_path)
    with pytest.raises(CompileError) as error:
        ptx(family, Variant(), HEADS, "sm_90", cache=tmp_path)
    assert one_line(error) == f"{family.path} cannot be read (No such file or directory)"


@pytest.fixture
def no_toolkit(monkeypatch):
    """A machine without a CUDA toolkit: no nvcc on PATH, nor where one is usually installed."""
    toolkit, is_file = Path("/usr/local/cuda/bin/nvcc"), Path.is_file
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(Path, "is_file", lambda self: self != toolkit and is_file(self))


@pytest.mark.usefixtures("no_toolkit")
@pytest.mark.parametrize("wheels", [None, "of other packages"])
def test_without_nvcc_the_line_says_what_to_install(tmp_path, monkeypatch, wheels):
    if wheels is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    else:
        (tmp_path / "nvidia" / "cublas").mkdir(parents=True)
        only_packages_of(tmp_path, monkeypatch)
    with pytest.raises(CompileError, match=r"pip install 'moe-harness\[nvcc\]'") as error:
        compile_argmax(tmp_path)
    assert one_line(error).startswith("nvcc was not found on PATH, in /usr/local/cuda or in ")


@pytest.mark.usefixtures("no_toolkit")
def test_the_nvcc_of_the_wheels_is_found(tmp_path, monkeypatch):
    nvcc = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    only_packages_of(tmp_path, monkeypatch)
    with pytest.raises(CompileError, match="nvcc was not found"):
        find_nvcc()  # a file that cannot be run is no compiler
    nvcc.chmod(0o755)
    assert find_nvcc() == nvcc


def only_packages_of(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("no_toolkit")
def test_the_nvcc_of_the_wheels_compiles_by_itself(tmp_path):
    try:
        nvcc = find_nvcc()
    except CompileError:
        pytest.skip("the extra nvcc is not installed")
    assert "nvidia" in nvcc.parts
    assert nvcc.with_name("ptxas").is_file()
    compiled = ptx(attention.FAMILY, Variant(), HEADS, "sm_90", cache=tmp_path)
    assert b".entry attend" in compiled


def test_something_else_named_nvcc(tmp_path):
    script = tmp_path / "nvcc"
    script.write_text("#!/bin/sh\necho something else\n")
    script.chmod(0o755)
    with pytest.raises(CompileError, match="does not say its version") as error:
        compiler.compiler_version(script)
    one_line(error)


# -- what is compiled ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kernel"),
    [(family, kernel) for family in FAMILIES for kernel in family.arguments],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_launcher_that_lays_its_arguments_out_otherwise_does_not_compile(
    nvcc, tmp_path, family, kernel
):
    assert nvcc.is_file()
    fields = [
        (name, family.arguments[kernel].fields[name][0]) for name in family.arguments[kernel].names
    ]
    wrong = struct(*fields, ("one_more", np.int64))
    family = replace(family, arguments={**family.arguments, kernel: wrong})
    with pytest.raises(CompileError, match=f"differs from kernels/{family.name}.py") as error:
        ptx(family, Variant(), HEADS, "sm_90", cache=tmp_path)
    one_line(error)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("variant", [Variant(), Variant("f64", "q8_k", "f64", "f64", "f64", 1e-5)])
def test_pycuda_and_nvcc_are_given_the_same(fake_nvcc, fake_pycuda, tmp_path, family, variant):
    by_nvcc = ptx(family, variant, HEADS, "sm_100", cache=tmp_path / "nvcc")
    by_pycuda = ptx(family, variant, HEADS, "sm_100", cache=tmp_path / "pycuda", with_pycuda=True)
    assert by_nvcc == by_pycuda == b"fake\n"
    ((source, given),) = fake_pycuda[0]
    # As pycuda.compiler.compile makes its command line of them, but for its own include folder.
    folders = [f"-I{folder}" for folder in given["include_dirs"]]
    options = [f"--{given['target']}", *given["options"], "-arch", given["arch"], *folders]
    *arguments, path, _, _ = fake_nvcc.read_text().splitlines()
    assert arguments == options
    assert source == Path(path).read_text(encoding="utf-8")
    assert given["no_extern_c"] is True  # or it would wrap the templates
    assert given["cache_dir"] is False  # its cache writes in place
    assert given["nvcc"] == str(find_nvcc())


# -- the hash of what computes ---------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the kernels that may be changed."""
    folder = shutil.copytree(compiler.FOLDER, tmp_path / "kernels")
    monkeypatch.setattr(compiler, "FOLDER", folder)
    return folder


def changed(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_copy_has_the_same_hash(sources):
    here = source_hash()
    assert here == source_hash()
    assert len(here) == 16
    (sources / "README.md").touch()
    assert source_hash() == here


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("argmax.cu", "best.id == a.vocab ? 0", "best.id == a.vocab ? 1"),
        ("common.cuh", "offset >>= 1", "offset >>= 2"),
        ("argmax.py", "BLOCKS = 64", "BLOCKS = 32"),
        ("family.py", "--fmad=true", "--fmad=false"),
        ("compiler.py", "no_extern_c=True", "no_extern_c=False"),
    ],
)
def test_code_changes_the_hash(sources, name, old, new):
    before = source_hash()
    changed(sources / name, old, new)
    assert source_hash() != before


@pytest.mark.parametrize("name", ["argmax.cu", "common.cuh", "argmax.py"])
def test_a_file_more_or_less_changes_the_hash(sources, name):
    before = source_hash()
    (sources / name).rename(sources / f"of_another_name{Path(name).suffix}")
    assert source_hash() != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("argmax.cu", "// ", "// Otherwise: "),
        ("argmax.cu", "#include", "/* over\n two lines */\n\n#include"),
        ("common.cuh", "\n\n", "\n\n\n   // another\n"),
        ("argmax.py", '"""', '"""Otherwise: '),
        ("argmax.py", "BLOCKS = 64", "BLOCKS = 64  # why"),
        ("family.py", "    Attributes\n", "    Fields\n"),
    ],
)
def test_comments_docstrings_and_white_space_do_not(sources, name, old, new):
    before = source_hash()
    changed(sources / name, old, new)
    assert source_hash() == before


def test_the_hash_of_families_is_of_their_sources_and_headers(sources):
    copies = [replace(each.FAMILY, folder=sources) for each in (argmax, attention)]
    one, both = source_hash(copies[:1]), source_hash(copies)
    assert one != both
    changed(sources / "attention.cu", "kLeast = 128", "kLeast = 64")
    assert source_hash(copies[:1]) == one
    assert source_hash(copies) != both
    changed(sources / "common.cuh", "offset >>= 1", "offset >>= 2")
    assert source_hash(copies[:1]) != one


def test_python_is_hashed_alike_by_every_python():
    # ast.dump is not the same on 3.11, 3.12 and 3.13; evidence is made on one, checked on another.
    code = compiler.python_code(
        '"""What for."""\n'
        "@decorated(1)\n"
        "class A(B, key=None):\n"
        '    """What it is."""\n'
        "    x: int = 0  # so far\n"
        "    async def f(self, /, a, *rest, b=None, **more):\n"
        '        """What it does."""\n'
        '    def g(self): return f"{self.x!r:>2} {a}", [], {}, None, 1.5, b"x"\n'
    )
    assert hashlib.sha256(code.encode()).hexdigest()[:16] == "fbec604c8fea9a2d"
    assert "What" not in code
