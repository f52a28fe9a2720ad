"""A bounded walk over a GGUF header, before the ``gguf`` package is let near the file.

``gguf.GGUFReader`` trusts every count and length that it reads: a hostile header makes it loop
for hours, allocate without bound or fail with an unrelated exception. This walk visits each
field once, allocates nothing in proportion to a claimed count, and refuses in one line.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf

from harness.errors import BadInput

if TYPE_CHECKING:
    import mmap

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32, _BOOL = 8, 9, 4, 7
_LEAST_KV_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_LONGEST_KEY = 65535  # the format's own limit
_LONGEST_NAME = 256
_MOST_DIMS = 4
_MOST_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies: ``shape`` is rows first, ``start`` counts from the file's start."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class _Walker:
    """A cursor that refuses to leave the file."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def bad(self, message: str) -> BadInput:
        return BadInput(f"{self.path}: {message}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise self.bad(
                f"the file ends inside {what} (at byte {self.size}, {count} bytes expected at "
                f"{self.at}); it is truncated or damaged: fetch it again"
            )
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            self.take(count, what)
        self.at += count

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.u64(f"the length of {what}")
        most = self.size - self.at if longest is None else longest
        if length > most:
            raise self.bad(f"{what} claims {length} bytes, expected at most {most}; damaged file")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not UTF-8 (byte {error.start}); damaged file") from None

    def value(self, kind: int, what: str) -> None:
        """Walk over one value of metadata type ``kind``."""
        if kind in _SCALAR_BYTES:
            raw = self.take(_SCALAR_BYTES[kind], what)
            if kind == _BOOL and raw[0] > 1:
                raise self.bad(f"{what} is a boolean of value {raw[0]}, expected 0 or 1")
        elif kind == _STRING:
            self.string(what)
        elif kind == _ARRAY:
            self._array(what)
        else:
            raise self.bad(f"{what} has the unknown metadata type {kind}, expected 0 to 12")

    def _array(self, what: str) -> None:
        kind = self.u32(f"the element type of {what}")
        length = self.u64(f"the length of {what}")
        if kind == _ARRAY:
            raise self.bad(f"{what} is an array of arrays, which no model of this kind has")
        if kind != _STRING and kind not in _SCALAR_BYTES:
            raise self.bad(f"{what} has the unknown element type {kind}, expected 0 to 12")
        least = 8 if kind == _STRING else _SCALAR_BYTES[kind]
        if length > (self.size - self.at) // least:
            raise self.bad(
                f"{what} claims {length} elements, more than the file has bytes for; damaged file"
            )
        if kind == _STRING:
            for _ in range(length):
                self.string(what)
        else:
            self.skip(length * least, what)


def walk(data: mmap.mmap, path: str) -> list[TensorSpan]:
    """Check the whole header of the mapped GGUF ``data``.

    Returns the tensors in file order, each proved to lie inside the file and apart from the
    others.

    Raises
    ------
    BadInput
        At the first thing that is not as the format says.

    """
    walker = _Walker(data, path)
    _preamble(walker)
    tensor_count = walker.u64("the tensor count")
    kv_count = walker.u64("the metadata count")
    for count, least, what in (
        (tensor_count, _LEAST_TENSOR_BYTES, "tensors"),
        (kv_count, _LEAST_KV_BYTES, "metadata entries"),
    ):
        if count > walker.size // least:
            raise walker.bad(
                f"the header claims {count} {what}, more than {walker.size} bytes can hold; "
                "damaged file"
            )
    alignment = _metadata(walker, kv_count)
    spans = [_tensor(walker) for _ in range(tensor_count)]
    data_start = -(-walker.at // alignment) * alignment
    return _placed(walker, spans, data_start, alignment)


def _preamble(walker: _Walker) -> None:
    if walker.data[:4] != b"GGUF":
        raise walker.bad(
            f"not a GGUF file (it begins with {walker.data[:4]!r}, expected b'GGUF'); "
            "name a .gguf model"
        )
    walker.at = 4
    version = walker.u32("the version")
    if version not in (2, gguf.GGUF_VERSION):
        if struct.unpack("<I", struct.pack(">I", version))[0] in (1, 2, 3):
            raise walker.bad("big-endian GGUF; expected little-endian: convert it on this machine")
        raise walker.bad(f"GGUF version {version}, expected 2 or 3; convert the model again")


def _metadata(walker: _Walker, count: int) -> int:
    """Walk over the key-value pairs; returns the data alignment in bytes."""
    seen: set[str] = set()
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    for index in range(count):
        key = walker.string(f"metadata key {index}", _LONGEST_KEY)
        if key in seen:
            raise walker.bad(f"metadata key {key!r} stands twice; damaged file")
        seen.add(key)
        kind = walker.u32(f"the type of {key}")
        start = walker.at
        walker.value(kind, f"metadata {key}")
        if key == "general.alignment":
            alignment = int.from_bytes(walker.data[start : start + 4], "little")
            if kind != _UINT32 or alignment.bit_count() != 1 or alignment > _MOST_ALIGNMENT:
                raise walker.bad(
                    f"general.alignment is {alignment} (type {kind}), expected an unsigned "
                    f"32-bit power of two up to {_MOST_ALIGNMENT}"
                )
    return alignment


def _tensor(walker: _Walker) -> TensorSpan:
    """Walk over one tensor's entry; ``start`` is still relative to the data section."""
    name = walker.string("a tensor's name", _LONGEST_NAME)
    dims = walker.u32(f"the dimension count of {name}")
    if not 1 <= dims <= _MOST_DIMS:
        raise walker.bad(f"tensor {name} has {dims} dimensions, expected 1 to {_MOST_DIMS}")
    shape = tuple(walker.u64(f"a dimension of {name}") for _ in range(dims))[::-1]
    if not all(1 <= extent < 1 << 48 for extent in shape):
        raise walker.bad(f"tensor {name} has shape {list(shape)}; each extent must be 1 to 2^48")
    kind = walker.u32(f"the type of {name}")
    start = walker.u64(f"the offset of {name}")
    try:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise walker.bad(f"tensor {name} has the unknown type {kind}; damaged file") from None
    if shape[-1] % values:
        raise walker.bad(
            f"tensor {name} has rows of {shape[-1]} values, expected a multiple of {values} for "
            f"{gguf.GGMLQuantizationType(kind).name}"
        )
    return TensorSpan(name, kind, shape, start, math.prod(shape) // values * size)


def _placed(
    walker: _Walker, spans: list[TensorSpan], data_start: int, alignment: int
) -> list[TensorSpan]:
    names: set[str] = set()
    placed = []
    for span in spans:
        if span.name in names:
            raise walker.bad(f"tensor {span.name} stands twice; damaged file")
        names.add(span.name)
        if span.start % alignment:
            raise walker.bad(
                f"tensor {span.name} lies at offset {span.start}, expected a multiple of the "
                f"alignment {alignment}; damaged file"
            )
        start = data_start + span.start
        if start + span.size > walker.size:
            raise walker.bad(
                f"tensor {span.name} ends at byte {start + span.size}, but the file has "
                f"{walker.size}; it is truncated or damaged: fetch it again"
            )
        placed.append(TensorSpan(span.name, span.kind, span.shape, start, span.size))
    by_start = sorted(placed, key=lambda span: span.start)
    for before, after in itertools.pairwise(by_start):
        if before.start + before.size > after.start:
            raise walker.bad(f"tensors {before.name} and {after.name} overlap; damaged file")
    return placed
