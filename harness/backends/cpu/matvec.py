"""Matrix times vector straight from quantised blocks: dequantised in registers, eight lanes wide.

A *product* is one matrix and one vector; a *batch* of products, of any mix of formats and sizes,
runs in one parallel region, split evenly by rows. Weights are given by address, so that the map of
an 18 GB file, experts inside a tensor, and rows of the KV cache are all read where they lie.

Order of summation (FACTS: "Their CPU Q6_K kernel"): four accumulators of eight float32 lanes. In
K-quants accumulator j takes the groups of 32 at l + 32 j of every 128 values; Q8_0 block j mod 4;
plain formats values 8 j .. 8 j + 7 of every 32. They are combined (a0 + a1) + (a2 + a3), then
across lanes as a fixed tree. Each product is one fused multiply-add. The values of a plain row
behind its last whole 32 are summed by themselves, one after the other, and added last.

The lanes are a type of their own to numba, with code generators for the few operations needed:
explicit vectors, because an auto-vectoriser may not reorder these sums and so would leave them
scalar. They live in this file for the sake of the disk cache (see ``jit.compiled``).

Block layouts: ``gguf.quants``, ggml's ``ggml-common.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from harness.backends.cpu.jit import compiled, intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# -- lanes: vector registers as numba types ----------------------------------------------------

_Value: TypeAlias = Any  # an ``ir`` value that has a type: its classes share no base that says so

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT, _HALF = ir.FloatType(), ir.HalfType()


class _Lanes(types.Type):
    """A SIMD vector: never boxed, stored or passed out of a compiled function."""

    def __init__(self, name: str, element: ir.Type, count: int) -> None:
        super().__init__(name=name)
        self.llvm = ir.VectorType(element, count)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: object, lanes: _Lanes) -> None:
        super().__init__(manager, lanes, lanes.llvm)


_F32X8 = _Lanes("f32x8", _FLOAT, 8)
_I32X8 = _Lanes("i32x8", _INT, 8)
_I8X32 = _Lanes("i8x32", _BYTE, 32)


def _generator(
    result: types.Type, *arguments: types.Type
) -> Callable[[Callable[..., _Value]], Callable[..., Any]]:
    """Decorate ``emit(builder, *operands) -> value`` into an intrinsic of that signature."""

    def decorate(emit: Callable[..., _Value]) -> Callable[..., Any]:
        signature = result(*arguments)

        def codegen(
            _context: object, builder: ir.IRBuilder, _signature: object, operands: list[_Value]
        ) -> _Value:
            return emit(builder, *operands)

        # Numba counts the parameters of an intrinsic, so each arity needs its own.
        by_arity: tuple[Callable[..., Any], ...] = (
            lambda _typing: (signature, codegen),
            lambda _typing, _a: (signature, codegen),
            lambda _typing, _a, _b: (signature, codegen),
            lambda _typing, _a, _b, _c: (signature, codegen),
            lambda _typing, _a, _b, _c, _d: (signature, codegen),
            lambda _typing, _a, _b, _c, _d, _e: (signature, codegen),
            lambda _typing, _a, _b, _c, _d, _e, _f: (signature, codegen),
        )
        function = by_arity[len(arguments)]
        function.__name__ = function.__qualname__ = emit.__name__
        return intrinsic(function)

    return decorate


def _at(builder: ir.IRBuilder, address: _Value, kind: ir.Type) -> _Value:
    """Load from an address of any alignment."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    return builder.load(pointer, align=1)


def _splat(builder: ir.IRBuilder, scalar: _Value, count: int = 8) -> _Value:
    """Put one scalar into every lane."""
    vector = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT, 0))
    zeros = ir.Constant(ir.VectorType(_INT, count), [0] * count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _lanes(builder: ir.IRBuilder, vector: _Value, start: int, count: int) -> _Value:
    """``vector[start : start + count]``."""
    pick = ir.Constant(ir.VectorType(_INT, count), list(range(start, start + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), pick)


def _joined(builder: ir.IRBuilder, low: _Value, high: _Value) -> _Value:
    """Concatenate two vectors."""
    count = 2 * low.type.count
    pick = ir.Constant(ir.VectorType(_INT, count), list(range(count)))
    return builder.shuffle_vector(low, high, pick)


def _every(vector: ir.VectorType, value: int) -> ir.Constant:
    """Return the vector constant with ``value`` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def _fma(builder: ir.IRBuilder, a: _Value, b: _Value, c: _Value) -> _Value:
    """``a * b + c``, rounded once, with or without hardware for it."""
    kind = ir.FunctionType(a.type, [a.type] * 3)
    name = "llvm.fma.v8f32" if a.type == _F32X8.llvm else "llvm.fma.f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [a, b, c])


def _floats(builder: ir.IRBuilder, integers: _Value) -> _Value:
    """Signed integers of eight lanes as float32."""
    if integers.type.element.width < 32:
        integers = builder.sext(integers, _I32X8.llvm)
    return builder.sitofp(integers, _F32X8.llvm)


@_generator(_F32X8)
def _zeros(_builder: ir.IRBuilder) -> _Value:
    return ir.Constant(_F32X8.llvm, [0.0] * 8)


@_generator(_I32X8)
def _zero_counts(_builder: ir.IRBuilder) -> _Value:
    return _every(_I32X8.llvm, 0)


@_generator(_I8X32, types.int64)
def _bytes32(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _at(builder, address, _I8X32.llvm)


@_generator(_I32X8, types.int64)
def _ints8(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _at(builder, address, _I32X8.llvm)


@_generator(types.float32, types.int64)
def _f32(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _at(builder, address, _FLOAT)


@_generator(types.float32, types.int64)
def _f16(builder: ir.IRBuilder, address: _Value) -> _Value:
    return builder.fpext(_at(builder, address, _HALF), _FLOAT)


@_generator(types.float32, types.int64)
def _bf16(builder: ir.IRBuilder, address: _Value) -> _Value:
    raw = builder.zext(_at(builder, address, _SHORT), _INT)
    return builder.bitcast(builder.shl(raw, ir.Constant(_INT, 16)), _FLOAT)


@_generator(types.int64, types.int64)
def _i8(builder: ir.IRBuilder, address: _Value) -> _Value:
    return builder.sext(_at(builder, address, _BYTE), _LONG)


@_generator(types.float32, types.int64)
def _scale(builder: ir.IRBuilder, address: _Value) -> _Value:
    """An int8 as float32."""
    return builder.sitofp(_at(builder, address, _BYTE), _FLOAT)


@_generator(_F32X8, types.int64)
def _f32x8(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _at(builder, address, _F32X8.llvm)


@_generator(_F32X8, types.int64)
def _f16x8(builder: ir.IRBuilder, address: _Value) -> _Value:
    return builder.fpext(_at(builder, address, ir.VectorType(_HALF, 8)), _F32X8.llvm)


@_generator(_F32X8, types.int64)
def _bf16x8(builder: ir.IRBuilder, address: _Value) -> _Value:
    raw = builder.zext(_at(builder, address, ir.VectorType(_SHORT, 8)), _I32X8.llvm)
    return builder.bitcast(builder.shl(raw, _every(_I32X8.llvm, 16)), _F32X8.llvm)


@_generator(_I8X32, _I8X32)
def _low(builder: ir.IRBuilder, raw: _Value) -> _Value:
    """Low nibbles."""
    return builder.and_(raw, _every(_I8X32.llvm, 15))


@_generator(_I8X32, _I8X32)
def _high(builder: ir.IRBuilder, raw: _Value) -> _Value:
    """High nibbles."""
    return builder.lshr(raw, _every(_I8X32.llvm, 4))


@_generator(_I8X32, _I8X32, types.int64, types.int64)
def _field(builder: ir.IRBuilder, raw: _Value, bit: _Value, mask: _Value) -> _Value:
    """Bits ``mask`` from ``bit`` on, moved to bit 4: above a nibble."""
    bit, mask = (_splat(builder, builder.trunc(value, _BYTE), 32) for value in (bit, mask))
    found = builder.and_(builder.lshr(raw, bit), mask)
    return builder.shl(found, _every(_I8X32.llvm, 4))


@_generator(_I8X32, _I8X32, _I8X32)
def _either(builder: ir.IRBuilder, a: _Value, b: _Value) -> _Value:
    return builder.or_(a, b)


@_generator(_I8X32, _I8X32)
def _less_32(builder: ir.IRBuilder, raw: _Value) -> _Value:
    return builder.sub(raw, _every(_I8X32.llvm, 32))


def _six_bits(builder: ir.IRBuilder, address: _Value, first: int, last_shift: int) -> _Value:
    """Eight 6-bit numbers of a K-quant's 12 scale bytes: scales (0, 0) or mins (4, 4).

    Four are the low six bits of a byte; four have their low nibble in the last four bytes and
    their upper two bits on top of the former.
    """
    quad = ir.VectorType(_BYTE, 4)
    own = _at(builder, builder.add(address, ir.Constant(_LONG, first)), quad)
    last = _at(builder, builder.add(address, ir.Constant(_LONG, 8)), quad)
    nibble = builder.and_(builder.lshr(last, _every(quad, last_shift)), _every(quad, 15))
    upper = builder.shl(builder.lshr(own, _every(quad, 6)), _every(quad, 4))
    early, late = builder.and_(own, _every(quad, 63)), builder.or_(nibble, upper)
    return builder.zext(_joined(builder, early, late), _I32X8.llvm)


@_generator(_I32X8, types.int64)
def _scales(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _six_bits(builder, address, 0, 0)


@_generator(_I32X8, types.int64)
def _mins(builder: ir.IRBuilder, address: _Value) -> _Value:
    return _six_bits(builder, address, 4, 4)


@_generator(_F32X8, types.float32, _I32X8)
def _scaled(builder: ir.IRBuilder, scale: _Value, integers: _Value) -> _Value:
    """``scale * integers`` as float32."""
    return builder.fmul(_floats(builder, integers), _splat(builder, scale))


@_generator(types.float32, _F32X8, types.int64)
def _lane(builder: ir.IRBuilder, vector: _Value, index: _Value) -> _Value:
    return builder.extract_element(vector, builder.trunc(index, _INT))


@_generator(types.int64, _I32X8, types.int64)
def _count(builder: ir.IRBuilder, vector: _Value, index: _Value) -> _Value:
    return builder.sext(builder.extract_element(vector, builder.trunc(index, _INT)), _LONG)


@_generator(_F32X8, _F32X8, _F32X8, _F32X8)
def _add_product(builder: ir.IRBuilder, total: _Value, a: _Value, b: _Value) -> _Value:
    """``total + a * b``, rounded once."""
    return _fma(builder, a, b, total)


@_generator(types.float32, types.float32, types.float32, types.float32)
def _add_scalars(builder: ir.IRBuilder, total: _Value, a: _Value, b: _Value) -> _Value:
    """``total + a * b``, rounded once."""
    return _fma(builder, a, b, total)


@_generator(_F32X8, _F32X8, _I8X32, types.float32, types.float32, types.float32, types.int64)
def _add_group(
    builder: ir.IRBuilder,
    total: _Value,
    quants: _Value,
    early: _Value,
    late: _Value,
    bias: _Value,
    x: _Value,
) -> _Value:
    """Add ``(scale * quant + bias) * x`` of 32 quants to eight lanes.

    ``early`` scales the first 16 quants, ``late`` the last; ``x`` is the address of 32 float32.
    """
    bias = _splat(builder, bias)
    for chunk in range(4):
        scale = _splat(builder, early if chunk < 2 else late)
        values = _fma(builder, _floats(builder, _lanes(builder, quants, 8 * chunk, 8)), scale, bias)
        address = builder.add(x, ir.Constant(_LONG, 32 * chunk))
        total = _fma(builder, values, _at(builder, address, _F32X8.llvm), total)
    return total


@_generator(types.float32, _F32X8, _F32X8, _F32X8, _F32X8)
def _total(builder: ir.IRBuilder, a0: _Value, a1: _Value, a2: _Value, a3: _Value) -> _Value:
    """``(a0 + a1) + (a2 + a3)``, then halves upon halves of the lanes."""
    lanes = builder.fadd(builder.fadd(a0, a1), builder.fadd(a2, a3))
    for half in (4, 2, 1):
        lanes = builder.fadd(_lanes(builder, lanes, 0, half), _lanes(builder, lanes, half, half))
    return builder.extract_element(lanes, ir.Constant(_INT, 0))


def _short_products(builder: ir.IRBuilder, quants: _Value, x: _Value, start: int) -> _Value:
    """Products of 16 int8 pairs, two to a lane: int16 ``[8]``.

    Quants reach 32 in magnitude (31 in Q5_K) and activations 127, so even the sum of four
    products, 16 256, stays inside an int16.
    """
    wide = ir.VectorType(_SHORT, 16)
    a, b = (builder.sext(_lanes(builder, half, start, 16), wide) for half in (quants, x))
    products = builder.mul(a, b)
    return builder.add(_lanes(builder, products, 0, 8), _lanes(builder, products, 8, 8))


@_generator(_I32X8, _I32X8, _I8X32, types.int64, types.int64)
def _count_group(
    builder: ir.IRBuilder, total: _Value, quants: _Value, scale: _Value, x: _Value
) -> _Value:
    """Add ``scale * sum(quants * x)`` of 32 int8 pairs to eight lanes; ``x`` is an address."""
    x = _at(builder, x, _I8X32.llvm)
    products = builder.add(
        _short_products(builder, quants, x, 0), _short_products(builder, quants, x, 16)
    )
    scale = _splat(builder, builder.trunc(scale, _INT))
    return builder.add(total, builder.mul(builder.sext(products, _I32X8.llvm), scale))


@_generator(_I32X8, _I32X8, _I8X32, types.int64, types.int64, types.int64)
def _count_halves(
    builder: ir.IRBuilder,
    total: _Value,
    quants: _Value,
    early: _Value,
    late: _Value,
    x: _Value,
) -> _Value:
    """Do the same with a scale for each 16."""
    x = _at(builder, x, _I8X32.llvm)
    for start, scale in ((0, early), (16, late)):
        products = builder.sext(_short_products(builder, quants, x, start), _I32X8.llvm)
        scales = _splat(builder, builder.trunc(scale, _INT))
        total = builder.add(total, builder.mul(products, scales))
    return total


@_generator(_I32X8, _I32X8, _I32X8)
def _multiplied(builder: ir.IRBuilder, a: _Value, b: _Value) -> _Value:
    return builder.mul(a, b)


@_generator(_F32X8, _F32X8, types.float32, _I32X8)
def _add_counts(builder: ir.IRBuilder, total: _Value, scale: _Value, counts: _Value) -> _Value:
    """``total + scale * counts``, rounded once."""
    return _fma(builder, _floats(builder, counts), _splat(builder, scale), total)


# -- one row, float32 activations --------------------------------------------------------------
#
# ``w``: address of the row's first byte; ``x``: of the activations, float32 [columns].

_ROW = "float32(int64, int64, int64)"


@compiled(_ROW)
def _f32_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    for _ in range(columns // 32):
        a0 = _add_product(a0, _f32x8(w), _f32x8(x))
        a1 = _add_product(a1, _f32x8(w + 32), _f32x8(x + 32))
        a2 = _add_product(a2, _f32x8(w + 64), _f32x8(x + 64))
        a3 = _add_product(a3, _f32x8(w + 96), _f32x8(x + 96))
        w += 128
        x += 128
    rest: float = np.float32(0)
    for i in range(columns % 32):
        rest = _add_scalars(rest, _f32(w + 4 * i), _f32(x + 4 * i))
    total: float = _total(a0, a1, a2, a3)
    return total + rest


@compiled(_ROW)
def _f16_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    for _ in range(columns // 32):
        a0 = _add_product(a0, _f16x8(w), _f32x8(x))
        a1 = _add_product(a1, _f16x8(w + 16), _f32x8(x + 32))
        a2 = _add_product(a2, _f16x8(w + 32), _f32x8(x + 64))
        a3 = _add_product(a3, _f16x8(w + 48), _f32x8(x + 96))
        w += 64
        x += 128
    rest: float = np.float32(0)
    for i in range(columns % 32):
        rest = _add_scalars(rest, _f16(w + 2 * i), _f32(x + 4 * i))
    total: float = _total(a0, a1, a2, a3)
    return total + rest


@compiled(_ROW)
def _bf16_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    for _ in range(columns // 32):
        a0 = _add_product(a0, _bf16x8(w), _f32x8(x))
        a1 = _add_product(a1, _bf16x8(w + 16), _f32x8(x + 32))
        a2 = _add_product(a2, _bf16x8(w + 32), _f32x8(x + 64))
        a3 = _add_product(a3, _bf16x8(w + 48), _f32x8(x + 96))
        w += 64
        x += 128
    rest: float = np.float32(0)
    for i in range(columns % 32):
        rest = _add_scalars(rest, _bf16(w + 2 * i), _f32(x + 4 * i))
    total: float = _total(a0, a1, a2, a3)
    return total + rest


@compiled(_ROW)
def _q8_0_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    none = np.float32(0)
    blocks = columns // 32
    for _ in range(blocks // 4):
        a0 = _add_group(a0, _bytes32(w + 2), _f16(w), _f16(w), none, x)
        a1 = _add_group(a1, _bytes32(w + 36), _f16(w + 34), _f16(w + 34), none, x + 128)
        a2 = _add_group(a2, _bytes32(w + 70), _f16(w + 68), _f16(w + 68), none, x + 256)
        a3 = _add_group(a3, _bytes32(w + 104), _f16(w + 102), _f16(w + 102), none, x + 384)
        w += 136
        x += 512
    if blocks % 4 > 0:
        a0 = _add_group(a0, _bytes32(w + 2), _f16(w), _f16(w), none, x)
    if blocks % 4 > 1:
        a1 = _add_group(a1, _bytes32(w + 36), _f16(w + 34), _f16(w + 34), none, x + 128)
    if blocks % 4 > 2:
        a2 = _add_group(a2, _bytes32(w + 70), _f16(w + 68), _f16(w + 68), none, x + 256)
    total: float = _total(a0, a1, a2, a3)
    return total


@compiled(_ROW)
def _q4_k_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    for _ in range(columns // 256):
        s = _scaled(_f16(w), _scales(w + 4))
        m = _scaled(-_f16(w + 2), _mins(w + 4))
        raw = _bytes32(w + 16)
        a0 = _add_group(a0, _low(raw), _lane(s, 0), _lane(s, 0), _lane(m, 0), x)
        a1 = _add_group(a1, _high(raw), _lane(s, 1), _lane(s, 1), _lane(m, 1), x + 128)
        raw = _bytes32(w + 48)
        a2 = _add_group(a2, _low(raw), _lane(s, 2), _lane(s, 2), _lane(m, 2), x + 256)
        a3 = _add_group(a3, _high(raw), _lane(s, 3), _lane(s, 3), _lane(m, 3), x + 384)
        raw = _bytes32(w + 80)
        a0 = _add_group(a0, _low(raw), _lane(s, 4), _lane(s, 4), _lane(m, 4), x + 512)
        a1 = _add_group(a1, _high(raw), _lane(s, 5), _lane(s, 5), _lane(m, 5), x + 640)
        raw = _bytes32(w + 112)
        a2 = _add_group(a2, _low(raw), _lane(s, 6), _lane(s, 6), _lane(m, 6), x + 768)
        a3 = _add_group(a3, _high(raw), _lane(s, 7), _lane(s, 7), _lane(m, 7), x + 896)
        w += 144
        x += 1024
    total: float = _total(a0, a1, a2, a3)
    return total


@compiled(_ROW)
def _q5_k_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    for _ in range(columns // 256):
        s = _scaled(_f16(w), _scales(w + 4))
        m = _scaled(-_f16(w + 2), _mins(w + 4))
        bit = _bytes32(w + 16)
        raw = _bytes32(w + 48)
        q = _either(_low(raw), _field(bit, 0, 1))
        a0 = _add_group(a0, q, _lane(s, 0), _lane(s, 0), _lane(m, 0), x)
        q = _either(_high(raw), _field(bit, 1, 1))
        a1 = _add_group(a1, q, _lane(s, 1), _lane(s, 1), _lane(m, 1), x + 128)
        raw = _bytes32(w + 80)
        q = _either(_low(raw), _field(bit, 2, 1))
        a2 = _add_group(a2, q, _lane(s, 2), _lane(s, 2), _lane(m, 2), x + 256)
        q = _either(_high(raw), _field(bit, 3, 1))
        a3 = _add_group(a3, q, _lane(s, 3), _lane(s, 3), _lane(m, 3), x + 384)
        raw = _bytes32(w + 112)
        q = _either(_low(raw), _field(bit, 4, 1))
        a0 = _add_group(a0, q, _lane(s, 4), _lane(s, 4), _lane(m, 4), x + 512)
        q = _either(_high(raw), _field(bit, 5, 1))
        a1 = _add_group(a1, q, _lane(s, 5), _lane(s, 5), _lane(m, 5), x + 640)
        raw = _bytes32(w + 144)
        q = _either(_low(raw), _field(bit, 6, 1))
        a2 = _add_group(a2, q, _lane(s, 6), _lane(s, 6), _lane(m, 6), x + 768)
        q = _either(_high(raw), _field(bit, 7, 1))
        a3 = _add_group(a3, q, _lane(s, 7), _lane(s, 7), _lane(m, 7), x + 896)
        w += 176
        x += 1024
    total: float = _total(a0, a1, a2, a3)
    return total


@compiled(_ROW)
def _q6_k_row(w: int, columns: int, x: int) -> float:
    a0, a1, a2, a3 = _zeros(), _zeros(), _zeros(), _zeros()
    none = np.float32(0)
    for _ in range(columns // 256):
        d = _f16(w + 208)
        for half in range(2):
            near, far = _bytes32(w + 64 * half), _bytes32(w + 64 * half + 32)
            pair = _bytes32(w + 128 + 32 * half)
            s, y = w + 192 + 8 * half, x + 512 * half
            q = _less_32(_either(_low(near), _field(pair, 0, 3)))
            a0 = _add_group(a0, q, d * _scale(s), d * _scale(s + 1), none, y)
            q = _less_32(_either(_low(far), _field(pair, 2, 3)))
            a1 = _add_group(a1, q, d * _scale(s + 2), d * _scale(s + 3), none, y + 128)
            q = _less_32(_either(_high(near), _field(pair, 4, 3)))
            a2 = _add_group(a2, q, d * _scale(s + 4), d * _scale(s + 5), none, y + 256)
            q = _less_32(_either(_high(far), _field(pair, 6, 3)))
            a3 = _add_group(a3, q, d * _scale(s + 6), d * _scale(s + 7), none, y + 384)
        w += 210
        x += 1024
    total: float = _total(a0, a1, a2, a3)
    return total


# -- one row, activations rounded to int8 (q8_k) -----------------------------------------------
#
# ``x``: address of the int8 activations; ``d``: of their scales, float32 [columns / 256]; ``sums``:
# of their sums, int32 [columns / 32]. What a superblock adds up is an integer below 2^24 in each
# lane, exact in float32, and only then meets its scale.

_ROUNDED_ROW = "float32(int64, int64, int64, int64, int64)"


@compiled(_ROUNDED_ROW)
def _q4_k_rounded_row(w: int, columns: int, x: int, d: int, sums: int) -> float:
    a0, a1 = _zeros(), _zeros()
    for _ in range(columns // 256):
        s, n = _scales(w + 4), _zero_counts()
        for pair in range(4):
            raw, y = _bytes32(w + 16 + 32 * pair), x + 64 * pair
            n = _count_group(n, _low(raw), _count(s, 2 * pair), y)
            n = _count_group(n, _high(raw), _count(s, 2 * pair + 1), y + 32)
        a0 = _add_counts(a0, _f32(d) * _f16(w), n)
        a1 = _add_counts(a1, -_f32(d) * _f16(w + 2), _multiplied(_mins(w + 4), _ints8(sums)))
        w += 144
        x += 256
        d += 4
        sums += 32
    total: float = _total(a0, a1, _zeros(), _zeros())
    return total


@compiled(_ROUNDED_ROW)
def _q5_k_rounded_row(w: int, columns: int, x: int, d: int, sums: int) -> float:
    a0, a1 = _zeros(), _zeros()
    for _ in range(columns // 256):
        s, n, bit = _scales(w + 4), _zero_counts(), _bytes32(w + 16)
        for pair in range(4):
            raw, y = _bytes32(w + 48 + 32 * pair), x + 64 * pair
            q = _either(_low(raw), _field(bit, 2 * pair, 1))
            n = _count_group(n, q, _count(s, 2 * pair), y)
            q = _either(_high(raw), _field(bit, 2 * pair + 1, 1))
            n = _count_group(n, q, _count(s, 2 * pair + 1), y + 32)
        a0 = _add_counts(a0, _f32(d) * _f16(w), n)
        a1 = _add_counts(a1, -_f32(d) * _f16(w + 2), _multiplied(_mins(w + 4), _ints8(sums)))
        w += 176
        x += 256
        d += 4
        sums += 32
    total: float = _total(a0, a1, _zeros(), _zeros())
    return total


@compiled(_ROUNDED_ROW)
def _q6_k_rounded_row(w: int, columns: int, x: int, d: int, _sums: int) -> float:
    a0 = _zeros()
    for _ in range(columns // 256):
        n = _zero_counts()
        for half in range(2):
            near, far = _bytes32(w + 64 * half), _bytes32(w + 64 * half + 32)
            pair = _bytes32(w + 128 + 32 * half)
            s, y = w + 192 + 8 * half, x + 128 * half
            q = _less_32(_either(_low(near), _field(pair, 0, 3)))
            n = _count_halves(n, q, _i8(s), _i8(s + 1), y)
            q = _less_32(_either(_low(far), _field(pair, 2, 3)))
            n = _count_halves(n, q, _i8(s + 2), _i8(s + 3), y + 32)
            q = _less_32(_either(_high(near), _field(pair, 4, 3)))
            n = _count_halves(n, q, _i8(s + 4), _i8(s + 5), y + 64)
            q = _less_32(_either(_high(far), _field(pair, 6, 3)))
            n = _count_halves(n, q, _i8(s + 6), _i8(s + 7), y + 96)
        a0 = _add_counts(a0, _f32(d) * _f16(w + 208), n)
        w += 210
        x += 256
        d += 4
    total: float = _total(a0, _zeros(), _zeros(), _zeros())
    return total


# -- batches -----------------------------------------------------------------------------------

# What reads a row, by format and activations; the codes that ``rows_in_turn`` knows.
F32, F16, BF16, Q8_0, Q4_K, Q5_K, Q6_K, Q4_K_ROUNDED, Q5_K_ROUNDED, Q6_K_ROUNDED = range(10)

# Columns of a batch's table, int64 [products, 7], one product a line: what reads a row; address of
# the first row; bytes from row to row; values of a row; rows; where in the activations its vector
# begins and where in the output its result, both in values.
CODE, ADDRESS, STRIDE, COLUMNS, ROWS, INPUT, OUTPUT = range(7)

_BATCH = "int64[:, ::1], float32[::1], int8[::1], float32[::1], int32[::1], float32[::1]"


@compiled(f"void({_BATCH}, int64, int64)")
def rows_in_turn(
    batch: NDArray[np.int64],
    x: NDArray[np.float32],
    rounded: NDArray[np.int8],
    scales: NDArray[np.float32],
    sums: NDArray[np.int32],
    out: NDArray[np.float32],
    first: int,
    stop: int,
) -> None:
    """Compute rows ``first`` to ``stop`` of a batch, counted over all its products."""
    before = 0  # rows of the products passed
    for product in range(batch.shape[0]):
        rows = batch[product, ROWS]
        code, columns, at = batch[product, CODE], batch[product, COLUMNS], batch[product, INPUT]
        values = np.int64(x.ctypes.data) + 4 * at
        bytes_ = np.int64(rounded.ctypes.data) + at
        scale = np.int64(scales.ctypes.data) + 4 * (at // 256)
        counts = np.int64(sums.ctypes.data) + 4 * (at // 32)
        for row in range(max(first - before, 0), min(stop - before, rows)):
            w = batch[product, ADDRESS] + row * batch[product, STRIDE]
            if code == Q4_K:
                y = _q4_k_row(w, columns, values)
            elif code == Q6_K:
                y = _q6_k_row(w, columns, values)
            elif code == Q4_K_ROUNDED:
                y = _q4_k_rounded_row(w, columns, bytes_, scale, counts)
            elif code == Q6_K_ROUNDED:
                y = _q6_k_rounded_row(w, columns, bytes_, scale, counts)
            elif code == Q5_K:
                y = _q5_k_row(w, columns, values)
            elif code == Q5_K_ROUNDED:
                y = _q5_k_rounded_row(w, columns, bytes_, scale, counts)
            elif code == Q8_0:
                y = _q8_0_row(w, columns, values)
            elif code == F32:
                y = _f32_row(w, columns, values)
            elif code == F16:
                y = _f16_row(w, columns, values)
            elif code == BF16:
                y = _bf16_row(w, columns, values)
            else:
                y = np.nan
            out[batch[product, OUTPUT] + row] = y
        before += rows


@compiled(f"void({_BATCH}, int64, int64)", parallel=True)
def rows_in_parallel(
    batch: NDArray[np.int64],
    x: NDArray[np.float32],
    rounded: NDArray[np.int8],
    scales: NDArray[np.float32],
    sums: NDArray[np.int32],
    out: NDArray[np.float32],
    rows: int,
    pieces: int,
) -> None:
    """Compute a whole batch of ``rows`` rows in ``pieces`` equal parts at a time."""
    for piece in numba.prange(pieces):
        rows_in_turn(
            batch,
            x,
            rounded,
            scales,
            sums,
            out,
            rows * piece // pieces,
            rows * (piece + 1) // pieces,
        )
