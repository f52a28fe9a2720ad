"""What a kernel of one's own reads, writes and must compute."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    from kernels.compiler import Program
    from kernels.family import Family

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
Launch: TypeAlias = "Callable[[Program, Mapping[str, int], object], None]"


@dataclass(frozen=True)
class Limits:
    """How far each output may be from float64.

    Attributes
    ----------
    rel_l2
        Of a whole output: ``|output - reference| / |reference|``.
    row
        Of one value, relative to itself, or to the typical value where that is larger.

    """

    rel_l2: float
    row: float

    def __post_init__(self) -> None:
        for name in ("rel_l2", "row"):
            if not 0 < getattr(self, name) < 1:
                raise BadInput(
                    f"limit {name} {getattr(self, name)}, expected above 0 and below 1: zeros are "
                    "at a distance of 1"
                )


@dataclass(frozen=True)
class Declaration:
    """One kernel, or a few that are launched together.

    Attributes
    ----------
    name
        What benchmarks and evidence call it.
    family
        Its ``.cu``, in any folder.
    launch
        ``launch(program, buffers, stream)`` launches it once. ``buffers`` holds the device address
        of every input and output by name. It is called once for each copy, and then captured: it
        must not wait, allocate or look at a buffer.
    inputs
        ``inputs(rng)`` draws fresh inputs, of the same shapes and types each time.
    outputs
        Shape and floating-point type of each output. They hold NaN before every launch.
    reference
        ``reference(inputs)`` computes every output in float64.
    limits
        How far the outputs may be from it.
    faults
        Plants of the family that the guard must reject.
    bytes_read
        ``bytes_read(inputs)`` counts what a launch reads: each byte once, however often it is used.

    Raises
    ------
    BadInput
        For what can be seen without computing; ``rehearse`` sees the rest.

    """

    name: str
    family: Family
    launch: Launch
    inputs: Callable[[np.random.Generator], Arrays]
    outputs: Mapping[str, tuple[tuple[int, ...], DTypeLike]]
    reference: Callable[[Arrays], Arrays]
    limits: Limits
    faults: tuple[str, ...]
    bytes_read: Callable[[Arrays], int]

    def __post_init__(self) -> None:
        if not self.family.path.is_file():
            raise self.bad(f"{self.family.path} does not exist; name the family as its .cu")
        if not inspect.isfunction(self.launch):
            raise self.bad("launch is no plain function: its source goes into the evidence")
        if not self.faults:
            raise self.bad(
                "no faults: a guard that has rejected nothing proves nothing; plant some in "
                f"{self.family.path.name} (#ifdef PLANT_X) and name them"
            )
        for fault in self.faults:
            if fault not in self.family.plants:
                known = ", ".join(self.family.plants) or "none"
                raise self.bad(f"fault {fault!r} is no plant of its family, whose plants: {known}")
        if not self.outputs:
            raise self.bad("no outputs: there is nothing to hold against the reference")
        for output, (shape, dtype) in self.outputs.items():
            if not np.issubdtype(dtype, np.floating) or min(shape, default=0) < 1:
                raise self.bad(
                    f"output {output} is {np.dtype(dtype)} {list(shape)}, expected a "
                    "floating-point type, which can hold NaN, and a shape of at least one value"
                )

    def bad(self, what: str) -> BadInput:
        """Make the error that says what is wrong with this declaration."""
        return BadInput(f"kernel {self.name}: {what}")

    def drawn(self, rng: np.random.Generator) -> Arrays:
        """Fresh inputs, read-only.

        Raises
        ------
        BadInput
            Where they are no arrays, are empty, or share a name with an output.

        """
        given = self.inputs(rng)
        for name, array in given.items():
            if not isinstance(array, np.ndarray) or not array.nbytes:
                raise self.bad(f"input {name} is no array, or an empty one")
            if name in self.outputs:
                raise self.bad(f"{name} is an input and an output; buffers need names of their own")
            array.setflags(write=False)
        if not given:
            raise self.bad("no inputs: there is nothing to compute from")
        return given

    def truth(self, given: Arrays) -> Arrays:
        """Compute the reference: float64 arrays, one for each output.

        Raises
        ------
        BadInput
            Where its names, shapes or types are not those that were declared, or it is not finite.

        """
        truth = self.reference(given)
        if set(truth) != set(self.outputs):
            raise self.bad(
                f"the reference gives {_listed(truth)}, the outputs are {_listed(self.outputs)}"
            )
        for output, (shape, _) in self.outputs.items():
            array = truth[output]
            if array.shape != tuple(shape):
                raise self.bad(
                    f"the reference's {output} is {list(array.shape)}, its output {list(shape)}"
                )
            if array.dtype != np.float64:
                raise self.bad(f"the reference's {output} is {array.dtype}, expected float64")
            if not np.isfinite(array).all():
                raise self.bad(f"the reference's {output} is not finite; draw other inputs")
        return truth

    def bytes(self, given: Arrays) -> int:
        """Bytes that a launch on these inputs reads.

        Raises
        ------
        BadInput
            Where there are none, or more than the inputs have.

        """
        read, there = int(self.bytes_read(given)), sum(array.nbytes for array in given.values())
        if not 0 < read <= there:
            raise self.bad(
                f"bytes_read is {read}, expected 1 to {there}, all that the inputs have: what is "
                "read again comes from a cache"
            )
        return read


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"
