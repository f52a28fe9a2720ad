"""A declaration tried out without a GPU: everything but the kernel itself runs, once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from kernels.compiler import Program, ptx
from kernels.family import Heads, Variant
from kernels.launch import Device, Kernel

if TYPE_CHECKING:
    from harness.workbench.declaration import Declaration
    from kernels.family import Family

_DEVICE = Device(multiprocessors=132, shared_bytes=227 << 10)  # an H100's
_FIRST_ADDRESS = 1 << 40  # no small number that an argument could hold by chance
_APART = 1 << 20  # bytes between two buffers: an address belongs to one of them


@dataclass(frozen=True)
class Recorded:
    """One launch as the launcher asked for it; ``arguments`` are the struct's bytes."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: bytes


def rehearse(declaration: Declaration, variant: Variant | None = None) -> list[Recorded]:
    """Draw inputs, compute the reference, run the launcher; its launches, none of which ran.

    Raises
    ------
    BadInput
        Where the declaration's parts do not fit each other: a reference of other shapes, a field
        or a kernel that the family does not have, a buffer that no launch is given.

    """
    given = declaration.drawn(np.random.default_rng(0))
    declaration.truth(given)
    declaration.bytes(given)
    sizes = {name: array.nbytes for name, array in given.items()}
    sizes |= {
        name: int(np.prod(shape)) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in declaration.outputs.items()
    }
    buffers = _addresses(sizes)
    program = _Rehearsed(variant or Variant(), Heads(), "sm_90", _DEVICE)
    try:
        declaration.launch(program, buffers, None)
    except (KeyError, ValueError, TypeError) as error:
        raise declaration.bad(f"its launcher fails: {error}") from None
    _require_each(declaration, program.launches, buffers, sizes)
    return program.launches


def compile_all(declaration: Declaration, arch: str, variant: Variant | None = None) -> list[str]:
    """Compile the kernel clean and with each of its faults; the names of what was compiled.

    Raises
    ------
    kernels.compiler.CompileError
        Where nvcc is missing, or refuses the source.

    """
    plain = variant or Variant()
    for plant in (None, *declaration.faults):
        ptx(declaration.family, replace(plain, plant=plant), Heads(), arch)
    return ["clean", *declaration.faults]


@dataclass
class _Rehearsed(Program):
    """A program whose kernels note their launches."""

    launches: list[Recorded] = field(default_factory=list)

    def kernel(self, family: Family, name: str) -> Kernel:
        """Stand in for a kernel of the family."""
        if name not in family.arguments:
            known = ", ".join(family.arguments)
            raise ValueError(f"kernel {name!r}, expected one of {family.name}'s: {known}")

        def note(
            arguments: np.void, *, grid: tuple[int, ...], block: tuple[int, ...], **_: object
        ) -> None:
            self.launches.append(Recorded(name, grid, block, arguments.tobytes()))

        return _Noted(note, name, family.arguments[name])


class _Noted(Kernel):
    def _allow(self, shared: int) -> None:
        if shared > _DEVICE.shared_bytes:
            raise ValueError(f"{shared} bytes of shared memory, {_DEVICE.shared_bytes} are there")


def _addresses(sizes: dict[str, int]) -> dict[str, int]:
    """Addresses that lie apart, as if the buffers were on a device."""
    addresses, free = {}, _FIRST_ADDRESS
    for name, size in sizes.items():
        addresses[name] = free
        free += size + _APART - size % 256
    return addresses


def _require_each(
    declaration: Declaration,
    launches: list[Recorded],
    buffers: dict[str, int],
    sizes: dict[str, int],
) -> None:
    """Refuse a buffer that no launch points into: it is not read, or not written."""
    if not launches:
        raise declaration.bad("its launcher launches nothing")
    pointers = np.concatenate(
        [np.frombuffer(each.arguments[: len(each.arguments) // 8 * 8], "<u8") for each in launches]
    )
    for name, address in buffers.items():
        if not ((pointers >= address) & (pointers < address + sizes[name])).any():
            raise declaration.bad(f"no launch is given {name}; put it into the arguments")
