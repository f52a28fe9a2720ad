"""A pytest plugin: what a decoder of one's own must not refute, from its stage files alone.

A project that has this package installed has the fixture ``stage_files``, without an import
(docs/pytest-plugin.md). Neither torch nor a model is needed: APRT files in, a verdict out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from harness.stages.falsifiers import Verdict

_T = TypeVar("_T")


class StageFiles:
    """Two folders of stage files; each method fails the test where its claim is refuted.

    Parameters
    ----------
    candidate, reference
        Folders of the layout ``layer-<N>/<stage>.bin`` and ``<stage>.bin``.
    positions
        How many positions each file holds; told by ``moe_router`` where that is dumped.
    layers
        How many layers the model has: one that neither folder holds is then a failure. Without
        it, those count that either folder holds.

    """

    def __init__(
        self,
        candidate: str | os.PathLike[str],
        reference: str | os.PathLike[str],
        *,
        positions: int | None = None,
        layers: int | None = None,
    ) -> None:
        from harness.stages.aprt import read_dump  # noqa: PLC0415 - numpy, only where asked for
        from harness.stages.falsifiers import positions_of  # noqa: PLC0415

        self._first, self._second = read_dump(Path(candidate)), read_dump(Path(reference))
        self._positions = positions_of(self._first, self._second, positions)
        self._layers = layers

    def per_layer_cosine(self, floor: float | None = None, *, stage: str = "moe_ffn_out") -> None:
        """Assert that ``stage`` reaches a cosine of ``floor`` (0.99) at every layer and position.

        NaN and infinities reach none.
        """
        __tracebackhide__ = True
        from harness.stages.falsifiers import COSINE_FLOOR, per_layer_cosine  # noqa: PLC0415

        floor = COSINE_FLOOR if floor is None else floor
        self._require(per_layer_cosine, floor=floor, stage=stage, layers=self._layers)

    def expert_sets_equal(self) -> None:
        """Assert that every layer chose the same experts at every position, in any order."""
        __tracebackhide__ = True
        from harness.stages.falsifiers import expert_sets_equal  # noqa: PLC0415

        self._require(expert_sets_equal, layers=self._layers)

    def argmax_agreement(self, at_least: float = 1.0) -> None:
        """Assert that both choose the same token at a share of ``at_least`` of the positions."""
        __tracebackhide__ = True
        from harness.stages.falsifiers import argmax_agreement  # noqa: PLC0415

        self._require(argmax_agreement, at_least=at_least)

    def _require(self, claim: Callable[..., Verdict], **asked: object) -> None:
        __tracebackhide__ = True
        verdict = _in_one_line(
            lambda: claim(self._first, self._second, positions=self._positions, **asked)
        )
        if not verdict.holds:
            pytest.fail("\n".join(verdict.lines()), pytrace=False)


@pytest.fixture(scope="session")
def stage_files() -> Callable[..., StageFiles]:
    """Open two folders of stage files: ``stage_files(candidate, reference, ...)``.

    Takes what ``StageFiles`` takes. Folders that cannot be read fail the test in one line.
    """

    def opened(
        candidate: str | os.PathLike[str],
        reference: str | os.PathLike[str],
        *,
        positions: int | None = None,
        layers: int | None = None,
    ) -> StageFiles:
        __tracebackhide__ = True
        return _in_one_line(
            lambda: StageFiles(candidate, reference, positions=positions, layers=layers)
        )

    return opened


def _in_one_line(asked: Callable[[], _T]) -> _T:
    """What cannot be used fails the test in the line that says so, without a traceback."""
    __tracebackhide__ = True
    from harness.errors import BadInput  # noqa: PLC0415

    try:
        return asked()
    except BadInput as error:
        pytest.fail(str(error), pytrace=False)
