"""How the CPU backend compiles: numba, typed for mypy, with one set of options for all.

No fast-math flag is ever set: floating-point results are exactly those of the order that the
source states, whatever LLVM vectorises or inlines, so the serial and the parallel build of a loop
agree to the last bit. Where a multiply and an add round once, the source says ``fma``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
from numba.extending import intrinsic as _numba_intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def compiled(signature: str, *, parallel: bool = False) -> Callable[[_Function], _Function]:
    """Compile a function when its module is imported, for exactly one signature.

    The machine code is cached on disk beside the module (or where ``NUMBA_CACHE_DIR`` says). Numba
    renews a cached function when *its own* source file changes, not when a file that it calls
    into does: so compiled functions call only into their own module.
    """
    return cast(
        "Callable[[_Function], _Function]",
        numba.njit(
            signature, cache=True, parallel=parallel, error_model="numpy", boundscheck=False
        ),
    )


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a code generator callable from compiled functions (without its first argument)."""
    return cast("Callable[..., Any]", _numba_intrinsic(function))
