"""Every kernel, compiled once for all tests: what nvcc made of it, and what ptxas makes of that."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import emulated
from helpers.places import AGpu, ThisCpu

from harness.backends.cuda.decoder import variant_of
from harness.numerics import CUDA_NUMERICS, find_numerics
from kernels import FAMILIES, compiler
from kernels.compiler import ARCHITECTURES, CompileError
from kernels.family import Family, Heads

HEADS = Heads()
DEFAULT = variant_of(find_numerics(None, "cuda"))
VARIANTS = {name: variant_of(numerics) for name, numerics in CUDA_NUMERICS.items()}
PTXAS_CACHE = Path("~/.cache/moe-harness/ptxas").expanduser()
_FIGURES = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used \d+ registers(?:[^\n]*?, (\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Frame:
    """What a kernel keeps outside its registers, in bytes of each thread; ``shared`` of a block."""

    stack: int
    spill_stores: int
    spill_loads: int
    shared: int  # that it declares itself


@functools.cache
def find_ptxas():
    """Path and version of ptxas: beside nvcc, or beside what nvcc is a link or a wrapper of."""
    nvcc = compiler.find_nvcc()
    places = [nvcc.with_name("ptxas"), nvcc.resolve().with_name("ptxas")]
    places += [Path(found)] if (found := shutil.which("ptxas")) else []
    places.append(Path("/usr/local/cuda/bin/ptxas"))
    place = next(place for place in places if place.is_file())
    return place, subprocess.run([place, "--version"], capture_output=True, check=True).stdout


def frames(ptx, arch):
    """Assemble; each kernel's frame. ptxas' answer is cached as PTX is."""
    ptxas, version = find_ptxas()
    key = hashlib.sha256(b"\0".join((arch.encode(), version, ptx))).hexdigest()[:24]
    path = PTXAS_CACHE / f"{key}.txt"
    try:
        answer = path.read_text(encoding="utf-8")
    except OSError:
        command = [ptxas, "-v", "-arch", arch, "-o", os.devnull, "/dev/stdin"]
        answer = subprocess.run(command, input=ptx, capture_output=True, check=True).stderr.decode()
        compiler._store(path, answer.encode())
    return {
        name: Frame(*(int(figure or 0) for figure in figures))
        for name, *figures in _FIGURES.findall(answer)
    }


class Build:
    """PTX by family, variant and architecture; whatever compiles alike is compiled once."""

    def __init__(self):
        self._futures = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for family in FAMILIES:
                # An architecture's or a fault's concern is the default numerics alone.
                for variant in VARIANTS.values():
                    self._submit(pool, family, variant, "sm_90")
                for arch in ARCHITECTURES:
                    self._submit(pool, family, DEFAULT, arch)
                for plant in family.plants:
                    self._submit(pool, family, replace(DEFAULT, plant=plant), "sm_90")
            # While this waits pytest's filters hold: what the compiler warns of is an error.
            wait(self._futures.values())

    def _submit(self, pool, family, variant, arch):
        key = self._key(family, variant, arch)
        if key not in self._futures:
            self._futures[key] = pool.submit(self._make, family, variant, arch)

    @staticmethod
    def _key(family, variant, arch):
        return family.name, tuple(family.options(variant, HEADS)), arch

    @staticmethod
    def _make(family, variant, arch):
        compiled = compiler.ptx(family, variant, HEADS, arch)
        return SimpleNamespace(ptx=compiled.decode(), frames=frames(compiled, arch))

    def __call__(self, family, variant=DEFAULT, arch="sm_90"):
        return self._futures[self._key(family, variant, arch)].result()


@pytest.fixture(scope="session")
def nvcc():
    """The compiler: Linux has it, by the extra ``nvcc`` if not by a toolkit."""
    try:
        return compiler.find_nvcc()
    except CompileError as error:
        if sys.platform == "linux":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def build(nvcc):
    """Everything that is compiled; the first time takes minutes, then the caches answer."""
    assert nvcc.is_file()
    return Build()


@pytest.fixture
def build_source(nvcc, tmp_path):
    """Compile a source of a test's own, for sm_90."""
    assert nvcc.is_file()

    def built(source, choices=(), variant=DEFAULT):
        family = Family("planted", {}, choices, folder=tmp_path)
        family.path.write_text(source, encoding="utf-8")
        compiled = compiler.ptx(family, variant, HEADS, "sm_90")
        return SimpleNamespace(ptx=compiled.decode(), frames=frames(compiled, "sm_90"))

    return built


@pytest.fixture(scope="module")
def this_cpu(tmp_path_factory):
    return ThisCpu(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request):
    """Where kernels run."""
    if request.param == "gpu":
        gpu = AGpu()
        yield gpu
        gpu.free()
        return
    if emulated.compiler() is None:
        pytest.skip("no g++ here")
    yield request.getfixturevalue("this_cpu")
