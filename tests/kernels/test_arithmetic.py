"""What the compiler made of the arithmetic and of the loads, read in the PTX.

Registers are followed, not lines: a check holds whatever order the compiler puts instructions in.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from harness.backends.cuda.decoder import variant_of
from harness.numerics import CUDA_NUMERICS
from kernels import experts, matvec
from kernels.compiler import ARCHITECTURES
from kernels.experts import FAMILY as EXPERTS
from kernels.matvec import FAMILY as MATVEC
from kernels.router import FAMILY as ROUTER

pytestmark = pytest.mark.slow  # the first time; then the cache answers

# Products that stage their input without a norm: all their reductions are sums of rows.
PLAIN = [(MATVEC, "matvec"), (MATVEC, "attention_output"), (EXPERTS, "down")]
NORMED = [(MATVEC, "qkv"), (MATVEC, "logits"), (EXPERTS, "gate_up"), (ROUTER, "route")]
TILED = [(family, f"{name}_tiled") for family in (MATVEC, EXPERTS) for name in family.arguments]
# Products of four-bit quants, which are unsigned; of six-bit ones, which are signed here.
PRODUCTS = [f"mma.sync.aligned.m16n8k32.row.col.s32.{kind}.s8.s32" for kind in ("u8", "s8")]
# Tiles that a warp holds of each kernel, as its launcher plans them.
DEPTHS = {
    "qkv": matvec._QKV_DEPTH,
    "attention_output": matvec._OUTPUT_DEPTH,
    "logits": matvec.MOST_DEPTH,
    "matvec": matvec.MOST_DEPTH,
    "gate_up": experts._GATE_UP_DEPTH,
    "down": experts._DOWN_DEPTH,
}
# Tiles that a warp holds where a multiprocessor has 100 or 164 KB of shared memory; 3 elsewhere.
DEEPEST = {"sm_86": 1, "sm_89": 1, "sm_120": 1, "sm_80": 2}
# What chooses experts and adds up what they gave, in whatever kernel: no sum of products.
MIXING = re.compile(r"(choose|rank_experts|weigh|whole_warp_id|store_mixed)(<\d+>)?$")

# Kinds of load by which each format reads a piece: all quants and packed scales 16 bytes at a time
# (Q6_K: 8), and what lies alone as the 2 bytes that it has (a block's d).
WIDTHS = {
    "PlainF32": {"v4.u32"},
    "Plain16<0>": {"v4.u32"},
    "Plain16<1>": {"v4.u32"},
    "Q8_0": {"v4.u32", "u16"},
    "Nibbles<0>": {"v4.u32"},  # Q4_K
    "Nibbles<1>": {"v4.u32"},  # Q5_K
    "Q6_K": {"v2.u32", "u16"},
}
# How the lanes' words of a tile, and the input's limbs and scales, are read out of shared memory.
TILE_WIDTHS = {
    "product_q4_k": {"v4.u32", "v2.u32", "u32", "f32"},
    "product_q6_k": {"v4.u32", "v2.u32", "u16", "f32"},
}

ids = {"ids": lambda value: value if isinstance(value, str) else value.name}


# -- reading PTX -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``inside`` are the functions that it was inlined from, innermost first."""

    operation: str
    written: tuple[str, ...]
    read: tuple[str, ...]  # registers and constants
    inside: tuple[str, ...]


class Entry:
    """A kernel's instructions, and who writes and who reads each register."""

    def __init__(self, ptx, kernel):
        body = re.search(rf"\.entry {kernel}\(.*?^}}", ptx, re.DOTALL | re.MULTILINE)
        assert body, f"no kernel {kernel}"
        self.instructions = list(_instructions(body[0], _function_names(ptx)))
        self.writers, self.readers = defaultdict(list), defaultdict(list)
        for each in self.instructions:
            for register in each.written:
                self.writers[register].append(each)
            for register in each.read:
                self.readers[register].append(each)

    def all(self, prefix):
        return [each for each in self.instructions if each.operation.startswith(prefix)]

    def origins(self, register, through):
        """What writes a register, followed back through some operations.

        ``through`` maps a prefix of an operation to the indices of the operands to follow. A loop
        comes back to where it was; constants are the register itself.
        """
        found, seen, left = [], set(), [register]
        while left:
            register = left.pop()
            if register in seen:
                continue
            seen.add(register)
            for writer in self.writers[register]:
                followed = [at for prefix, at in through.items() if _is(writer, prefix)]
                if followed:
                    left += [writer.read[at] for at in followed[0]]
                else:
                    found.append(writer)
        return found


def _is(instruction, prefix):
    return f"{instruction.operation}.".startswith(f"{prefix}.")


def _instructions(body, names):
    """Instructions with their functions: ``.loc`` tells every inlined call, outermost first."""
    here, parents = None, {}
    for line in body.splitlines():
        if loc := re.match(
            r"\s*\.loc\s+(\d+ \d+ \d+)(?:, function_name (\S+), inlined_at (.+))?", line
        ):
            here = loc[1]
            parents[here] = (names.get(loc[2], ""), loc[3])
            continue
        if not (code := re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+([^;]*);", line)):
            continue
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+(?=,|$)", code[2])
        parts = [re.findall(r"%\w+|0[fd][0-9A-F]+|-?\b\d+\b", operand) for operand in operands]
        stores = code[1].startswith(("st.", "bar.", "bra", "ret", "red.", "cp.async."))
        written = () if stores or not parts else tuple(parts[0])
        read = parts if stores else parts[1:]
        inside, at = [], here
        while at is not None and len(inside) < 50:
            name, at = parents.get(at, ("", None))
            inside.append(name)
        yield Instruction(
            code[1], written, tuple(item for part in read for item in part), tuple(inside)
        )


def _function_names(ptx):
    """Labels of the debug strings, and the functions that they name: ``Class<arguments>::name``."""
    found = re.findall(r"^(\$L__info_string\d+):\n((?:\.b8 .*\n)+)", ptx, re.MULTILINE)
    return {
        label: _demangled(bytes(map(int, re.findall(r"\d+", re.sub(r"\.b8", "", text)))).decode())
        for label, text in found
    }


def _demangled(name):
    """Enough of it: the (nested) name, and template arguments that are numbers."""
    name = name.rstrip("\0")
    if not (start := re.match(r"_ZN?K?", name)):
        return name
    parts, rest = [], name[start.end() :]
    while length := re.match(r"\d+", rest):
        rest = rest[length.end() :]
        part, rest = rest[: int(length[0])], rest[int(length[0]) :]
        if arguments := re.match(r"I((?:L[a-z]\d+E)+)E", rest):
            part += "<" + ",".join(re.findall(r"L[a-z](\d+)E", arguments[1])) + ">"
            rest = rest[arguments.end() :]
        parts.append(part)
    return "::".join(parts)


# -- float64 ---------------------------------------------------------------------------------------


def rounding_complaints(entry, *, only_sums=True):
    """What is wrong with sums of products that should be float64 until after the last shuffle.

    With ``only_sums`` every shuffle and every rounding must be a sum's; else the kernel may have
    others too (a norm, a softmax), and only what is rounded must not be shuffled.
    """
    complaints = [] if entry.all("fma.rn.f64") else ["no fma.rn.f64"]
    shuffles, roundings = _but_mixing(entry, "shfl"), _but_mixing(entry, "cvt.rn.f32.f64")
    if len(shuffles) < 10:
        complaints.append("no reduction of five steps, two shuffles each")
    if not roundings:
        complaints.append("nothing is rounded to float32")
    for shuffle in shuffles:
        complaints += _shuffle_complaints(entry, shuffle, only_sums=only_sums)
    for rounding in roundings if only_sums else ():
        # The last addition: a lane's sum and another's, shuffled (put together out of two halves).
        for add in entry.origins(rounding.read[0], {"mov.f64": (0,)}):
            writers = [writer for register in add.read for writer in entry.writers[register]]
            if not any(writer.operation == "mov.b64" for writer in writers):
                complaints.append(f"rounded before the reduction: {rounding}")
    return complaints


def _but_mixing(entry, prefix):
    return [
        each
        for each in entry.all(prefix)
        if not any(MIXING.search(function) for function in each.inside)
    ]


def _shuffle_complaints(entry, shuffle, *, only_sums):
    summing = {"add.f64": (0, 1), "add.rn.f64": (0, 1), "fma.rn.f64": (2,), "mov.f64": (0,)}
    halves = entry.origins(shuffle.read[0], {"mov.u32": (0,)})
    wide = [half for half in halves if half.operation == "mov.b64"]
    if only_sums and wide != halves:
        yield f"32 bits are shuffled: {shuffle}"
    for origin in [each for half in wide for each in entry.origins(half.read[0], summing)]:
        if origin.operation.startswith("cvt.f64.f32"):
            yield f"a float32 is summed up: {origin}"
        elif only_sums and origin.operation not in ("mov.b64", "mul.f64", "mul.rn.f64"):
            yield f"a sum begins with {origin}"


@pytest.mark.parametrize(("family", "kernel"), PLAIN, **ids)
def test_f64_adds_in_float64_and_rounds_once_after_the_reduction(build, family, kernel):
    built = build(family, variant_of(CUDA_NUMERICS["f64"]))
    assert not rounding_complaints(Entry(built.ptx, kernel))


@pytest.mark.parametrize(("family", "kernel"), NORMED, **ids)
def test_f64_shuffles_nothing_that_was_rounded_where_a_norm_comes_first(build, family, kernel):
    built = build(family, variant_of(CUDA_NUMERICS["f64"]))
    assert not rounding_complaints(Entry(built.ptx, kernel), only_sums=False)


@pytest.mark.parametrize(
    ("sum_type", "total", "complaint"),
    [
        ("float", "warp_sum(sum)", "no fma.rn.f64"),
        ("float", "static_cast<float>(warp_sum(static_cast<double>(sum)))", "float32 is summed up"),
        ("double", "warp_sum(static_cast<float>(sum))", "32 bits are shuffled"),
        ("double", "warp_sum(static_cast<float>(sum))", "rounded before the reduction"),
        ("double", "static_cast<float>(sum)", "no reduction of five steps"),
        (
            "double",
            "static_cast<float>(warp_sum(static_cast<double>(static_cast<float>(sum))))",
            "float32 is summed up",
        ),
        ("double", "static_cast<float>(warp_sum(sum))", None),
    ],
)
def test_a_sum_that_is_rounded_too_early_is_seen(build_source, sum_type, total, complaint):
    source = f"""
#include "common.cuh"
extern "C" __global__ void dot(const float* w, const float* x, float* out, int n) {{
  {sum_type} sum = 0;
  for (int k = lane_id(); k < n; k += 32) {{
    sum = fma(static_cast<{sum_type}>(w[k]), static_cast<{sum_type}>(x[k]), sum);
  }}
  out[threadIdx.x] = {total};
}}
"""
    complaints = rounding_complaints(Entry(build_source(source).ptx, "dot"))
    assert (complaint or "") in " ".join(complaints)
    assert bool(complaints) == bool(complaint)


def test_the_f32_variant_does_not_pass_for_the_f64_one(build):
    built = build(MATVEC, variant_of(CUDA_NUMERICS["f32"]))
    for _, kernel in [place for place in PLAIN if place[0] is MATVEC]:
        assert rounding_complaints(Entry(built.ptx, kernel))


# -- compensated sums ------------------------------------------------------------------------------


def compensation_complaints(entry):
    """What is wrong with sums that should carry what they round away (Kahan's).

    Each product: ``y = w * x - lost; next = sum + y; lost = (next - sum) - y``, every step rounded
    by itself (``.rn`` keeps ptxas from contracting them).
    """
    complaints, lost, carried = [], set(), []
    for product in entry.all("fma.rn.f32"):
        for addition in entry.readers[product.written[0]]:
            if addition.operation.startswith("add"):
                carried.append(product)
                steps = _losses(entry, product, addition)
                lost.update(steps)
                if not steps:
                    complaints.append(f"a product is added without compensation: {addition}")
        running = entry.origins(product.read[2], {"mov": (0,)})
        if any(each.operation == "fma.rn.f32" for each in running):
            complaints.append(f"a running sum without compensation: {product}")
    if not carried:
        complaints.append("no compensated sum at all")
    for product in carried:
        # A register that starts as zero may first be copied from another's zero, and so lead to
        # what that one holds later: what counts is that it leads to a loss, too.
        origins = entry.origins(product.read[2], {"mov": (0,), "neg.f32": (0,)})
        if origins and not any(origin.written[0] in lost for origin in origins):
            complaints.append(f"compensated by something else: {origins}")
    return [*complaints, *_reduction_complaints(entry)]


def _losses(entry, product, addition):
    """Registers of ``(next - sum) - y``, where ``addition`` is ``next = sum + y``."""
    y, total = product.written[0], addition.written[0]
    if addition.operation != "add.rn.f32":
        return []
    before = next((each for each in addition.read if each != y), y)
    return [
        loss for back in _differences(entry, total, before) for loss in _differences(entry, back, y)
    ]


def _differences(entry, minuend, subtrahend):
    return [
        each.written[0]
        for each in entry.readers[minuend]
        if each.operation == "sub.rn.f32" and each.read == (minuend, subtrahend)
    ]


def _reduction_complaints(entry):
    """Both the sum and its loss are shuffled; what is added to either is corrected after."""
    for shuffle in entry.all("shfl"):
        for reader in _readers_through_moves(entry, shuffle.written[0]):
            corrected = any(
                each.operation == "sub.rn.f32" for each in entry.readers[reader.written[0]]
            )
            if reader.operation.startswith("add") and not corrected:
                yield f"shuffled and added without compensation: {reader}"


def _readers_through_moves(entry, register):
    for reader in entry.readers[register]:
        if reader.operation.startswith("mov."):
            yield from _readers_through_moves(entry, reader.written[0])
        else:
            yield reader


@pytest.mark.parametrize(("family", "kernel"), [PLAIN[0], PLAIN[1]], **ids)
def test_kahan_keeps_its_compensation(build, family, kernel):
    built = build(family, variant_of(CUDA_NUMERICS["kahan"]))
    assert not compensation_complaints(Entry(built.ptx, kernel))


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("sum = fmaf(w[k], x[k], sum);", "running sum without compensation"),
        ("sum += w[k] * x[k];", "running sum without compensation"),
        (
            "float y = w[k] * x[k] - lost, next = sum + y; lost = next - sum - y; sum = next;",
            "no compensated sum",
        ),
        (
            "float y = __fmaf_rn(w[k], x[k], -lost); sum = __fadd_rn(sum, y);",
            "added without compensation",
        ),
        (
            "float y = __fmaf_rn(w[k], x[k], -1e-9f * k), next = __fadd_rn(sum, y);"
            "lost = __fsub_rn(__fsub_rn(next, sum), y); sum = next;",
            "compensated by something else",
        ),
        (
            "float y = __fmaf_rn(w[k], x[k], -lost), next = __fadd_rn(sum, y);"
            "lost = __fsub_rn(__fsub_rn(next, sum), y); sum = next;",
            None,
        ),
    ],
)
def test_a_sum_without_compensation_is_seen(build_source, step, complaint):
    source = f"""
extern "C" __global__ void dot(const float* w, const float* x, float* out, int n) {{
  float sum = 0, lost = 0;
  for (int k = threadIdx.x; k < n; k += 32) {{ {step} }}
  out[threadIdx.x] = sum, out[threadIdx.x + 32] = lost;
}}
"""
    complaints = compensation_complaints(Entry(build_source(source).ptx, "dot"))
    assert (complaint or "") in " ".join(complaints)
    assert bool(complaints) == bool(complaint)


def test_a_reduction_without_compensation_is_seen(build_source):
    source = """
#include "common.cuh"
extern "C" __global__ void dot(const float* w, const float* x, float* out, int n) {
  float sum = 0, lost = 0;
  for (int k = lane_id(); k < n; k += 32) {
    float y = __fmaf_rn(w[k], x[k], -lost), next = __fadd_rn(sum, y);
    lost = __fsub_rn(__fsub_rn(next, sum), y);
    sum = next;
  }
  out[threadIdx.x] = warp_sum(sum) + lost;
}
"""
    complaints = compensation_complaints(Entry(build_source(source).ptx, "dot"))
    assert "shuffled" in " ".join(complaints)


def test_the_f32_variant_does_not_pass_for_the_kahan_one(build):
    built = build(MATVEC, variant_of(CUDA_NUMERICS["f32"]))
    assert compensation_complaints(Entry(built.ptx, "matvec"))


# -- loads -----------------------------------------------------------------------------------------


def loads(entry):
    """Kinds of loads by the format; ``value`` is the scalar fallback of every format.

    Whole float32 and int32 that are not marked as read-only are activations and expert ids.
    """
    found = defaultdict(Counter)
    for load in entry.all("ld.global"):
        kind = load.operation.removeprefix("ld.global.")
        if not kind.startswith("nc.") and kind.endswith("32"):
            continue
        methods = [name for name in load.inside if "::" in name and "::__ldg" not in name]
        owner, _, method = (methods or ["?::?"])[0].rpartition("::")
        found["value" if method == "value" else owner][kind.removeprefix("nc.")] += 1
    return found


def narrow_loads(entry, widths):
    """Loads of weights that are not as wide as intended, and formats that are not read at all.

    Only ``value``, for rows that are no whole number of pieces, may read value by value.
    """
    found = loads(entry)
    found.pop("value", None)
    return {
        owner: dict(found[owner])
        for owner in found.keys() | widths.keys()
        if found[owner].keys() != widths.get(owner)
    }


@pytest.mark.parametrize(
    ("family", "kernel", "numerics"),
    [
        *((family, name, "i24") for family in (MATVEC, EXPERTS) for name in family.arguments),
        *((MATVEC, "matvec", name) for name in ("f32", "f64", "kahan", "q8_k")),
    ],
    **ids,
)
def test_weights_are_loaded_as_wide_as_intended(build, family, kernel, numerics):
    built = build(family, variant_of(CUDA_NUMERICS[numerics]))
    assert not narrow_loads(Entry(built.ptx, kernel), WIDTHS)


@pytest.mark.parametrize(("family", "kernel"), TILED, **ids)
def test_tiles_are_loaded_wide_and_multiplied_by_tensor_cores(build, family, kernel):
    entry = Entry(build(family).ptx, kernel)
    assert not narrow_loads(entry, {})  # no weight comes by a load
    assert shared_loads(entry) == TILE_WIDTHS
    copies = entry.all("cp.async.cg.shared.global")
    assert {copy.read[-1] for copy in copies} == {"16"}
    for product in PRODUCTS:
        assert len(entry.all(product)) >= 2  # of a chunk's two groups


def shared_loads(entry):
    """Kinds of loads from shared memory by which each format's tiles are multiplied."""
    found = defaultdict(set)
    for load in entry.all("ld.shared"):
        for owner in TILE_WIDTHS.keys() & set(load.inside):
            found[owner].add(load.operation.removeprefix("ld.shared."))
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("family", "kernel"), TILED, **ids)
def test_warps_wait_for_as_many_tiles_as_their_launcher_has_room_for(build, family, kernel, arch):
    waits = Entry(build(family, arch=arch).ptx, kernel).all("cp.async.wait_group")
    depth = min(DEEPEST.get(arch, 3), DEPTHS[kernel.removesuffix("_tiled")])
    assert {wait.read for wait in waits} == {(str(depth - 1),)}


@pytest.mark.parametrize("family", [MATVEC, EXPERTS], ids=lambda family: family.name)
def test_only_tiled_kernels_use_tensor_cores_and_copies(build, family):
    for name in family.arguments:
        entry = Entry(build(family).ptx, name)
        assert not entry.all("mma")
        assert not entry.all("cp.async")


def test_narrow_loads_are_seen(build_source):
    source = """
#include "formats.cuh"
struct Narrow {
  static __device__ uint32_t load(const uint8_t* at) { return at[0] | at[1] << 8; }
};
struct Wide {
  static __device__ uint4 load(const uint8_t* at) { return load16(at); }
};
extern "C" __global__ void reading(const uint8_t* at, uint32_t* out) {
  const uint4 four = Wide::load(at);
  out[0] = Narrow::load(at + 16) + four.x + four.y + four.z + four.w + at[32];
}
"""
    entry = Entry(build_source(source).ptx, "reading")
    intended = {"Narrow": {"v4.u32"}, "Wide": {"v4.u32"}, "Absent": {"v4.u32"}}
    narrow = narrow_loads(entry, intended)
    assert narrow == {"Narrow": {"u8": 2}, "?": {"u8": 1}, "Absent": {}}


def test_registers_are_followed_through_loops_and_moves():
    ptx = """
.entry tiny(
)
{
	mov.f32 	%f1, 0f00000000;
$L__1:
	ld.global.nc.v2.f32 	{%f2, %f3}, [%rd1+8];
	@%p1 fma.rn.f32 	%f1, %f2, %f3, %f1;
	shfl.sync.bfly.b32 	%r2|%p2, %r1, %r3, %r4, %r5;
	st.global.f32 	[%rd2], %f1;
	@%p1 bra 	$L__1;
	ret;
}
"""
    entry = Entry(ptx, "tiny")
    load, product = entry.all("ld.global")[0], entry.all("fma")[0]
    assert load.written == ("%f2", "%f3")
    assert load.read[0] == "%rd1"
    assert product.read == ("%f2", "%f3", "%f1")
    assert entry.origins("%f1", {"mov.f32": (0,), "fma.rn.f32": (0, 2)}) == [load]
    assert entry.all("shfl")[0].written == ("%r2", "%p2")
    assert [each.operation for each in entry.readers["%f1"]] == ["fma.rn.f32", "st.global.f32"]
    assert _demangled("_ZN7NibblesILi0EE4loadERKNS0_3RowEi\0") == "Nibbles<0>::load"
    assert _demangled("_Z6load16PKv") == "load16"
