"""The CUDA kernels on a CPU: the very sources, compiled by g++ with ``cuda_on_cpu.hpp``.

Slow, block after block, thread after thread; a small model's token takes a good part of a second.
What stands in for PyCUDA and the driver (``installed``) is a few dozen lines, so that decoder,
launchers and kernels are those that run on a GPU. Times from here are never a measurement.
"""

import ctypes
import hashlib
import itertools
import platform
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np

from harness.backends.cuda import gpu as gpu_module
from kernels.compiler import Program, headers
from kernels.launch import Device, Kernel

HEADER = Path(__file__).with_name("cuda_on_cpu.hpp")
MULTIPROCESSORS, SHARED = 3, 227 << 10
_ASM = {
    r'asm volatile\("prefetch\.global\.L2 \[%0\];" ::"l"\(.*?\)\);': ";",
    r'asm volatile\("griddepcontrol\.\w+;" ::: "memory"\);': ";",
    r'asm\("mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.u8\.s8\.s32 .*?\);': (
        "memcpy(d, c, sizeof(d)), mma_m16n8k32(d, a, b);"
    ),
    r'asm\("mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32 .*?\);': (
        "memcpy(d, c, sizeof(d)), mma_m16n8k32(d, a, b, true);"
    ),
    r'asm\("ex2\.approx\.ftz\.f32 .*?\);': "power = exp2f(exponent);",
    r'asm\("mma\.sync\.aligned\.m16n8k16\.row\.col\.s32\.u8\.s8\.s32 .*?\);': (
        "mma_m16n8k16(d, a, b);"
    ),
    r'asm\("prmt\.b32 %0, %1, 0, %2;".*?\);': "result = prmt(word, 0, selector);",
    r'asm\("mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32 .*?\);': (
        "mma_m16n8k16(d, a, b);"
    ),
    r'asm volatile\("" : "\+f"\(.*?\)\);': ";",
    r'asm volatile\("atom\.acq_rel\.gpu\.global\.add\.u32 .*?"memory"\);': "before = (*counter)++;",
    # Copies happen at once.
    r'asm volatile\("cp\.async\.cg\.shared\.global \[%0\], \[%1\], 16;.*?"memory"\);': (
        "memcpy(to, from, 16);"
    ),
    r'asm volatile\("cp\.async\.cg\.shared\.global \[%0\], \[%1\], 16, %2;.*?"memory"\);': (
        "there ? (void)memcpy(to, from, 16) : (void)memset(to, 0, 16);"
    ),
    r'asm volatile\("ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16 .*?"memory"\);': (
        "ldmatrix_x4(d, from, false);"
    ),
    r'asm volatile\("ldmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16 .*?"memory"\);': (
        "ldmatrix_x4(d, from, true);"
    ),
    r'asm volatile\("ld\.volatile\.global\.v4\.f32 .*?"memory"\);': "memcpy(&four, from, 16);",
    # There are no clusters: a block is one by itself, and never comes here.
    r'asm volatile\("barrier\.cluster\..*?"memory"\);': "abort();",
    r'asm volatile\("{ \.reg \.b32 there; mapa\..*?"memory"\);': "abort();",
    r'asm volatile\("cp\.async\.(commit|wait)_group.*?"memory"\);': ";",
}
_DYNAMIC = re.compile(r"extern __shared__ __align__\(16\) (\w+) (\w+)\[\];")


def compiler():
    """g++, or None where there is none."""
    return shutil.which("g++")


def on_a_cpu(source):
    """A source without what only a GPU understands."""
    for pattern, instead in _ASM.items():
        source = re.sub(pattern, instead, source, flags=re.DOTALL)
    source = _DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(emulated::dynamic_shared);", source)
    source = source.replace("#include <cuda_fp16.h>", "").replace("#pragma unroll", "// unroll")
    if "asm" in re.sub(r"//.*", "", source):
        raise ValueError(f"assembly that is not emulated; mend {__name__}")
    return source


def library(family, variant, heads, cache):
    """Compile a family; the shared library, kept in ``cache`` by all that it depends on."""
    sources = {family.path.name: family.path} | {path.name: path for path in headers(family)}
    texts = {name: on_a_cpu(path.read_text()) for name, path in sources.items()}
    main = texts.pop(family.path.name)
    names = sorted(
        name
        for name in re.findall(r'extern "C" __global__ [^#;{]*?(\w+)\(const', main)
        if variant.activation == "i24" or not name.endswith("_tiled")
    )
    table = "".join(
        f'  if (!strcmp(name, "{name}"))\n'
        f"    kernel = [](const void* a) {{ emulated::call({name}, a); }};\n"
        for name in names
    )
    main += f"""
extern "C" int launch(const char* name, const void* arguments, unsigned x, unsigned y, unsigned z,
                      unsigned threads) {{
  void (*kernel)(const void*) = nullptr;
{table}  if (kernel == nullptr) return 1;
  emulated::launch(kernel, arguments, {{x, y, z}}, threads);
  return 0;
}}
"""
    options = [option for option in family.options(variant, heads) if option not in _NVCC_ONLY]
    text = "\0".join([main, *sorted(texts.values()), HEADER.read_text(), *options])
    folder = Path(cache) / hashlib.sha256(text.encode()).hexdigest()[:20]
    built = folder / "kernels.so"
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        (folder / name).write_text(content)
    (folder / "main.cpp").write_text(f'#include "{HEADER}"\n{main}')
    command = ["g++", "-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off"]
    command += ["-mfma", "-mf16c"] if platform.machine() == "x86_64" else []
    command += ["-w", "-shared", "-fPIC", *options]
    command += [f"-I{folder}", str(folder / "main.cpp"), "-o", str(folder / "making.so")]
    subprocess.run(command, check=True)
    (folder / "making.so").rename(built)
    return built


_NVCC_ONLY = ("--fmad=true", "-lineinfo", "-std=c++17")


class EmulatedProgram(Program):
    """Kernels that run where they are launched, at once."""

    def kernel(self, family, name):
        if family.name not in self._modules:
            built = library(family, self.variant, self.heads, self.cache)
            self._modules[family.name] = ctypes.CDLL(str(built))
        run = self._modules[family.name].launch
        dtype = family.arguments[name.removesuffix("_tiled")]

        def now(arguments, *, grid, block, stream, shared):
            if shared > SHARED:
                raise ValueError(f"{name} asks for {shared} bytes of shared memory")
            given = np.array(arguments, dtype).tobytes()
            x, y, z = (*grid, 1, 1)[:3]

            def launch():
                if run(name.encode(), given, x, y, z, block[0]):
                    raise ValueError(f"{family.path} has no kernel {name}")

            stream.do(launch)

        return EmulatedKernel(now, name, dtype)


class EmulatedKernel(Kernel):
    """A kernel that may have all of the shared memory without asking."""

    def _allow(self, shared):
        self._shared = shared


class Stream:
    """Does what it is given at once, or notes it while it is captured."""

    def __init__(self):
        self.captured = None

    def do(self, work):
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def synchronize(self):
        pass


class EmulatedGraph:
    """What streams were given, to be done again: of several, now one's and now another's."""

    def __init__(self, *, overlapped=False):
        del overlapped
        self._branches = []

    @contextmanager
    def captured(self, stream, beside=()):
        streams = [stream, *beside]
        for each in streams:
            each.captured = []
        self._branches = [each.captured for each in streams]
        try:
            yield
        finally:
            for each in streams:
                each.captured = None

    @property
    def nodes(self):
        return sum(map(len, self._branches))

    @property
    def branches(self):
        return len(self._branches)

    def replay(self, stream):
        for works in itertools.zip_longest(*self._branches):
            for work in works:
                if work is not None:
                    stream.do(work)

    def close(self):
        self._branches = []


class Event:
    """Whatever lies between two of them takes a millisecond: no time from here is a measurement."""

    def record(self, stream):
        pass

    def time_since(self, _other):
        return 1.0


class Allocation:
    """Memory of this process, by address."""

    def __init__(self, nbytes):
        self._bytes = np.zeros(nbytes + 256, np.uint8)

    def __int__(self):
        return (self._bytes.ctypes.data + 255) // 256 * 256

    def free(self):
        self._bytes = None


def _view(address, nbytes):
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))


def _driver():
    """As much of ``pycuda.driver`` as a decoder asks for."""

    class DriverError(Exception):
        pass

    class OutOfMemoryError(DriverError):
        pass

    def fill(dtype):
        def memset(address, value, count):
            _view(address, count * dtype().itemsize).view(dtype)[:] = value

        return memset

    def fill_async(address, value, count, stream):
        stream.do(lambda: driver.memset_d32(address, value, count))

    def to_device(address, values):
        values = np.ascontiguousarray(values)
        _view(address, values.nbytes)[:] = values.reshape(-1).view(np.uint8)

    def from_device(into, address):
        into.reshape(-1).view(np.uint8)[:] = _view(address, into.nbytes)

    def between(target, source, nbytes, stream):
        def copy():
            _view(target, nbytes)[:] = _view(source, nbytes)

        stream.do(copy)

    driver = ModuleType("pycuda.driver")
    driver.Error, driver.MemoryError = DriverError, OutOfMemoryError
    driver.Stream, driver.Event = Stream, Event
    driver.mem_alloc = Allocation
    driver.mem_get_info = lambda: (1 << 40, 1 << 40)
    driver.memset_d32, driver.memset_d16 = fill(np.uint32), fill(np.uint16)
    driver.memset_d32_async = fill_async
    driver.memcpy_htod, driver.memcpy_dtoh = to_device, from_device
    driver.memcpy_dtod_async = between
    driver.pagelocked_empty = np.empty
    return driver


@contextmanager
def installed(cache):
    """Inside, ``CudaDecoder`` runs on this CPU; compiled kernels are kept in ``cache``."""
    pycuda, driver = ModuleType("pycuda"), _driver()
    pycuda.driver = driver

    class Gpu(gpu_module.Gpu):
        def program(self, variant, heads):
            device = Device(self.multiprocessors, self.shared_bytes)
            return EmulatedProgram(variant, heads, self.arch, device, Path(cache))

    here = Gpu(
        ordinal=0,
        name="this CPU, emulating",
        uuid="EMULATED",
        arch="sm_90",
        multiprocessors=MULTIPROCESSORS,
        shared_bytes=SHARED,
        l2_bytes=1 << 20,
        driver=(0, 0),
        compiler=(0, 0),
    )
    with (
        mock.patch.dict(sys.modules, {"pycuda": pycuda, "pycuda.driver": driver}),
        mock.patch("harness.backends.cuda.decoder.open_gpu", return_value=here),
        mock.patch("harness.backends.cuda.decoder.Graph", EmulatedGraph),
        mock.patch("harness.backends.cuda.batch.Graph", EmulatedGraph),
        mock.patch("harness.backends.cuda.batch.open_gpu", return_value=here),
        mock.patch("harness.backends.cuda.family_clock.Graph", EmulatedGraph),
    ):
        yield here
