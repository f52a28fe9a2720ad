"""Every kernel compiles, without a word from the compiler, and lives in its registers."""

from dataclasses import replace

import pytest

from harness.backends.cuda.decoder import variant_of
from harness.numerics import CUDA_NUMERICS, find_numerics
from kernels import FAMILIES, attention
from kernels.compiler import ARCHITECTURES
from kernels.launch import DECLARED

pytestmark = pytest.mark.slow  # the first time; then the cache answers

DEFAULT = variant_of(find_numerics(None, "cuda"))
# Bytes of stack that a kernel is allowed, and why.
STACKS = {
    "embed": 40,  # cos and sin in float64 reduce an angle above 2^31 in memory; none is that large
}

by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def kernels_of(family, variant):
    """Kernels that its launcher may load; those over rows have a form for tiles in ``i24``."""
    over_rows = variant.activation == "i24" and family.name in ("matvec", "experts")
    return {*family.arguments, *(f"{name}_tiled" for name in family.arguments if over_rows)}


def outside_registers(frames):
    """Kernels that keep something in memory that they should keep in registers."""
    return {
        name: frame
        for name, frame in frames.items()
        if frame.spill_stores or frame.spill_loads or frame.stack != STACKS.get(name, 0)
    }


@by_family
@pytest.mark.parametrize("numerics", CUDA_NUMERICS)
def test_every_numerics_compiles_and_spills_nothing(build, family, numerics):
    variant = variant_of(CUDA_NUMERICS[numerics])
    built = build(family, variant)
    assert built.frames.keys() == kernels_of(family, variant)
    assert not outside_registers(built.frames)


@by_family
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_default_numerics_compiles_for_every_architecture_and_spills_nothing(
    build, family, arch
):
    built = build(family, arch=arch)
    assert f".target {arch}" in built.ptx
    assert built.frames.keys() == kernels_of(family, DEFAULT)
    assert not outside_registers(built.frames)


@pytest.mark.parametrize(
    ("family", "plant"),
    [(family, plant) for family in FAMILIES for plant in family.plants],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_planted_fault_compiles_to_something_else(build, family, plant):
    assert build(family, replace(DEFAULT, plant=plant)).ptx != build(family).ptx


@pytest.mark.parametrize("numerics", CUDA_NUMERICS)
def test_kernels_declare_no_more_shared_memory_than_was_reckoned_with(build, numerics):
    """Launchers plan what is dynamic, to the last byte where there are tiles."""
    variant = variant_of(CUDA_NUMERICS[numerics])
    for family in FAMILIES:
        for name, frame in build(family, variant).frames.items():
            most = {"attend": attention._DECLARED}.get(name, DECLARED)
            assert frame.shared <= (0 if name.endswith("_tiled") else most), name


def test_a_spill_is_seen(build_source):
    sums = "\n".join(f"  float s{i} = x[{i}];" for i in range(64))
    turns = "\n".join(f"    s{i} = fmaf(s{i}, s{(i + 7) % 64}, 1.0f);" for i in range(64))
    stores = "\n".join(f"  x[{i}] = s{i};" for i in range(64))
    source = f"""
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* x, int n) {{
  x += 64 * threadIdx.x;
{sums}
  for (int i = 0; i < n; ++i) {{
{turns}
  }}
{stores}
}}
extern "C" __global__ void indexing(float* x, int n) {{
  float held[8];
  for (int i = 0; i < 8; ++i) held[i] = x[i];
  for (int i = 0; i < n; ++i) held[(n + i) & 7] += x[i];
  for (int i = 0; i < 8; ++i) x[i] = held[i];
}}
extern "C" __global__ void sharing(float* x) {{
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = held[63 - threadIdx.x];
}}
extern "C" __global__ void fine(float* x) {{ x[threadIdx.x] += 1; }}
"""
    frames = build_source(source).frames
    assert {name: frame.shared for name, frame in frames.items() if frame.shared} == {
        "sharing": 256
    }
    wrong = outside_registers(frames)
    assert wrong.keys() == {"spilling", "indexing"}
    assert wrong["spilling"].spill_loads > 0
    assert wrong["indexing"].stack > 0


def test_what_the_compiler_warns_of_is_an_error_here(build_source):
    source = 'extern "C" __global__ void idle() { int unused = 1; }'
    with pytest.raises(UserWarning, match=r"nvcc said of planted\.cu for sm_90: .*unused"):
        build_source(source)


@by_family
def test_every_kernel_of_a_token_waits_for_its_predecessor(build, family):
    """Its graph lets a kernel begin early where the GPU can; older ones know no such wait."""
    entries = build(family, arch="sm_90").ptx.split(".entry ")[1:]
    waiting = [entry for entry in entries if "griddepcontrol.wait" in entry]
    assert len(waiting) == (
        0 if family.name in ("pack", "fold", "read_bandwidth") else len(entries)
    )
    assert "griddepcontrol" not in build(family, arch="sm_80").ptx
