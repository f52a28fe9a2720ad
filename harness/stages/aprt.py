"""APRT stage files: ``layer-<N>/<stage>.bin``, and ``<stage>.bin`` of the whole model.

Layout: 4 bytes ``APRT``, u32 LE layer (0xFFFFFFFF: whole model), u32 LE element count, then
float32 LE values. Indices are cast to float32; NaN bits are kept. A file holds every position of
a prompt, position-major.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from harness.errors import BadInput
from harness.stages.names import STAGES, WHOLE_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.stages.capture import Capture
    from harness.stages.plan import Plan

_MAGIC = b"APRT"
_WHOLE = 0xFFFFFFFF
_HEADER = struct.Struct("<4sII")
_LAYER_FOLDER = re.compile(r"layer-(0|[1-9]\d{0,8})")

Dump: TypeAlias = "dict[tuple[str, int | None], NDArray[np.float32]]"


def write_dump(folder: Path, captures: Sequence[Capture], plan: Plan | None = None) -> None:
    """Write the captures of all positions (those stages that ``plan`` wants) into ``folder``.

    Written beside, then renamed: a dump is whole or not there. A former dump is replaced; any
    other folder with something in it is left alone.

    Raises
    ------
    BadInput
        Where the folder cannot be written, or holds other things than a dump.

    """
    if folder.exists() and not _may_replace(folder):
        raise BadInput(f"{folder} holds other things than a dump; name an empty or a new folder")
    beside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        for stage, layer in captures[0].keys() if captures else []:
            if plan is None or plan.wants(stage, layer):
                values = np.concatenate([capture[stage, layer] for capture in captures])
                _write(beside, stage, layer, values.astype("<f4"))
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); name another") from None


def read_dump(folder: Path) -> Dump:
    """Read every stage file of a dump; values float32, flat.

    Raises
    ------
    BadInput
        Where there is no dump, or a file of it is damaged.

    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder; expected a dump written by parity --dump")
    found: Dump = {}
    for path in sorted(folder.rglob("*.bin")):
        layer = _layer_of(path, folder)
        stage = path.stem
        if stage not in STAGES or (stage in WHOLE_MODEL) != (layer is None):
            raise BadInput(
                f"{path}: {stage} is no stage of that place; expected the layout of APRT"
            )
        found[stage, layer] = read_file(path, layer)
    if not found:
        raise BadInput(f"{folder} holds no stage files; expected layer-<N>/<stage>.bin")
    return found


def read_file(path: Path, layer: int | None) -> NDArray[np.float32]:
    """Read one stage file of the given layer (None: whole-model)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or header[:4] != _MAGIC:
                raise BadInput(f"{path}: begins with {header[:4]!r}, expected {_MAGIC!r}")
            _, claimed, count = _HEADER.unpack(header)
            if size != _HEADER.size + 4 * count:
                raise BadInput(
                    f"{path}: {size} bytes, expected {_HEADER.size + 4 * count} for {count} "
                    "values; truncated or damaged"
                )
            if claimed != (_WHOLE if layer is None else layer):
                raise BadInput(f"{path}: says layer {claimed}, expected that of its folder")
            return np.frombuffer(file.read(), dtype="<f4").astype(np.float32)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None


def _write(folder: Path, stage: str, layer: int | None, values: NDArray[np.floating]) -> None:
    place = folder if layer is None else folder / f"layer-{layer}"
    place.mkdir(exist_ok=True)
    header = _HEADER.pack(_MAGIC, _WHOLE if layer is None else layer, values.size)
    (place / f"{stage}.bin").write_bytes(header + values.tobytes())


def _layer_of(path: Path, folder: Path) -> int | None:
    parts = path.relative_to(folder).parts
    if len(parts) == 1:
        return None
    match = _LAYER_FOLDER.fullmatch(parts[0])
    if len(parts) != 2 or match is None:
        raise BadInput(f"{path}: expected {folder}/layer-<N>/<stage>.bin")
    return int(match[1])


def _may_replace(folder: Path) -> bool:
    """Whether the folder is empty or holds nothing but stage files."""
    if not folder.is_dir():
        return False
    return all(path.is_dir() or path.suffix == ".bin" for path in folder.rglob("*"))
