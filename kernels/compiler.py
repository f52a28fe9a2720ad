"""Compiling kernels to PTX and loading them.

On a GPU host PyCUDA compiles (``pycuda.compiler``) and loads; a machine without CUDA compiles the
same sources with the same options by the nvcc of PyPI's wheels. Either way the PTX goes into a
cache that a crash or a race in the middle of a write cannot tear: written beside, then renamed.
(PyCUDA's own cache writes in place, so it is left out.)
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.family import FOLDER, Family, Heads, Variant
from kernels.launch import Device, Kernel, RowKernel

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_CACHE = Path("~/.cache/moe-harness/ptx")


class CompileError(Exception):
    """No compiler, or a source that it refuses: one line."""


# -- where the compiler is -------------------------------------------------------------------------


def find_nvcc() -> Path:
    """Path of nvcc: on PATH, in the usual place of a toolkit, or out of PyPI's wheels.

    Raises
    ------
    CompileError
        Where there is none.

    """
    on_path = shutil.which("nvcc")
    places = [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    wheels = importlib.util.find_spec("nvidia")
    if wheels is not None:
        places += [
            Path(folder) / "cu13" / "bin" / "nvcc"
            for folder in wheels.submodule_search_locations or ()
        ]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    raise CompileError(
        "nvcc was not found on PATH, in /usr/local/cuda or in PyPI's wheels; install a CUDA 13 "
        "toolkit, or `pip install 'moe-harness[nvcc]'`"
    )


@functools.cache
def compiler_version(nvcc: Path) -> tuple[int, int]:
    """Release of nvcc, such as (13, 0)."""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    if match is None:
        raise CompileError(f"{nvcc} does not say its version; expected nvcc of CUDA 12 or 13")
    return int(match[1]), int(match[2])


# -- compiling -------------------------------------------------------------------------------------


def ptx(
    family: Family,
    variant: Variant,
    heads: Heads,
    arch: str,
    *,
    cache: Path | None = None,
    with_pycuda: bool = False,
) -> bytes:
    """Compile a family; PTX.

    Parameters
    ----------
    family, variant, heads
        What to compile (``Family.options``).
    arch
        One of ``ARCHITECTURES``.
    cache
        Folder of compiled PTX, ``~/.cache/moe-harness/ptx`` unless given.
    with_pycuda
        Compile through ``pycuda.compiler``.

    Raises
    ------
    CompileError
        For an unknown architecture, or what the compiler refuses.

    """
    if arch not in ARCHITECTURES:
        raise CompileError(f"architecture {arch}, expected one of {', '.join(ARCHITECTURES)}")
    nvcc = find_nvcc()
    options = family.options(variant, heads)
    folder = (cache or _CACHE).expanduser()
    path = folder / f"{family.name}-{_key(family, options, arch, nvcc)}.ptx"
    try:
        return path.read_bytes()
    except OSError:
        pass
    compiled = (_by_pycuda if with_pycuda else _by_nvcc)(family, options, arch, nvcc)
    _store(path, compiled)
    return compiled


def _key(family: Family, options: Sequence[str], arch: str, nvcc: Path) -> str:
    digest = hashlib.sha256()
    for part in (arch, *options, str(compiler_version(nvcc))):
        digest.update(part.encode() + b"\0")
    try:
        for source in (family.path, *headers(family)):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    except OSError as error:
        raise CompileError(f"{error.filename} cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:24]


def headers(family: Family) -> list[Path]:
    """Every header that a source of this family may include."""
    return sorted({*FOLDER.glob("*.cuh"), *family.folder.glob("*.cuh")})


def _include_folders(family: Family) -> list[str]:
    return list(dict.fromkeys([str(FOLDER), str(family.folder)]))


def _by_nvcc(family: Family, options: Sequence[str], arch: str, nvcc: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.ptx"
        command = [str(nvcc), "--ptx", *options, "-arch", arch]
        command += [f"-I{place}" for place in _include_folders(family)]
        answer = subprocess.run(
            [*command, str(family.path), "-o", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode or not out.is_file():
            raise CompileError(_complaint(family, arch, answer.stderr + answer.stdout))
        if said := (answer.stderr + answer.stdout).strip():  # PyCUDA warns of it, too
            warnings.warn(f"nvcc said of {family.path.name} for {arch}: {said}", stacklevel=3)
        return out.read_bytes()


def _by_pycuda(family: Family, options: Sequence[str], arch: str, nvcc: Path) -> bytes:
    import pycuda.compiler  # noqa: PLC0415 - needs CUDA
    import pycuda.driver  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            # PyCUDA leaves closing the file that it reads the PTX from to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            compiled = pycuda.compiler.compile(
                family.path.read_text(encoding="utf-8"),
                nvcc=str(nvcc),
                options=list(options),
                no_extern_c=True,
                arch=arch,
                cache_dir=False,
                include_dirs=_include_folders(family),
                target="ptx",
            )
    except pycuda.driver.CompileError as error:
        raise CompileError(_complaint(family, arch, error.stderr or str(error))) from None
    return bytes(compiled)


def _complaint(family: Family, arch: str, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if "error" in line.lower()]
    first = (lines or said.strip().splitlines() or ["it said nothing"])[0]
    return f"{family.path.name} does not compile for {arch}: {first}"


def _store(path: Path, compiled: bytes) -> None:
    """Write beside, then rename; whoever loses a race has written the same bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(compiled)
                file.flush()
                os.fsync(file.fileno())
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError:
        return  # a cache that cannot be written costs time, not results


# -- what computes ---------------------------------------------------------------------------


def source_hash(families: Sequence[Family] | None = None) -> str:
    """Hash of all that computes on the GPU: sources without comments, launchers, options.

    With families, of their sources and the headers alone.
    """
    digest = hashlib.sha256()
    if families is None:
        sources = [*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh"), *FOLDER.glob("*.py")]
    else:
        sources = [path for family in families for path in (family.path, *headers(family))]
    for path in sorted(set(sources)):
        text = path.read_text(encoding="utf-8")
        code = python_code(text) if path.suffix == ".py" else device_code(text)
        digest.update(f"{path.name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def device_code(text: str) -> str:
    """Source without comments and with all white space equal: what the compiler sees."""
    without = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return "\n".join(" ".join(line.split()) for line in without.splitlines() if line.strip())


def python_code(text: str) -> str:
    """Python source as its syntax tree, without comments and docstrings; on any Python the same."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [
                item
                for item in node.body
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ] or [ast.Pass()]
    return _written(tree)


def _written(node: object) -> str:
    """Write a syntax tree out without its empty fields.

    ``ast.dump`` differs between Pythons: 3.12 has fields that 3.11 lacks, 3.13 leaves empty ones
    out. A hash taken on one host is compared on another.
    """
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        inside = ", ".join(f"{name}={_written(value)}" for name, value in fields)
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    return repr(node)


# -- loading ----------------------------------------------------------------------------------


@dataclass
class Program:
    """Kernels of one variant, loaded into the present context as they are asked for.

    Needs PyCUDA and a current context; ``arch`` is the GPU's.
    """

    variant: Variant
    heads: Heads
    arch: str
    device: Device
    cache: Path | None = None
    _modules: dict[str, Any] = field(default_factory=dict)

    def kernel(self, family: Family, name: str) -> Kernel:
        """Load a kernel of a family; compiled at its first use."""
        if family.name not in self._modules:
            import pycuda.driver  # noqa: PLC0415 - needs CUDA

            compiled = ptx(
                family, self.variant, self.heads, self.arch, cache=self.cache, with_pycuda=True
            )
            self._modules[family.name] = pycuda.driver.module_from_buffer(compiled)
        function = self._modules[family.name].get_function(name)
        return Kernel(function, name, family.arguments[name.removesuffix("_tiled")])

    def row_kernel(self, family: Family, name: str) -> RowKernel:
        """Load a kernel over rows; ``i24`` has it for tiles too."""
        tiles = self.variant.activation == "i24"
        return RowKernel(
            self.kernel(family, name), self.kernel(family, f"{name}_tiled") if tiles else None
        )
