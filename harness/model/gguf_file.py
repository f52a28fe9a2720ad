"""Opening a GGUF file by memory map into a validated ``Model``."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from harness.errors import BadInput
from harness.model.config import Config, read_config, tensor_shapes
from harness.model.preflight import TensorSpan, walk
from harness.model.quants import FORMATS, QuantFormat, dequantise
from harness.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Above this a fingerprint samples each tensor: hashing 18 GB would cost more than a measurement.
_HASHED_WHOLE = 256 << 20
_SAMPLE = 64 << 10


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    ``shape`` has the rows first and the values of a row last; ``blocks`` are the raw bytes,
    uint8, shape ``[*shape[:-1], row_bytes]``, a read-only view of the map.
    """

    name: str
    format: QuantFormat
    shape: tuple[int, ...]
    blocks: NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.blocks.nbytes

    def values(self, index: int | slice = slice(None)) -> NDArray[np.float32]:
        """Dequantise ``tensor[index]`` along the first axis; float32."""
        return dequantise(self.blocks[index], self.format)


class _Metadata(Mapping[str, object]):
    """Key-value pairs of the header, decoded when asked for (vocabularies are long)."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._fields = {k: v for k, v in reader.fields.items() if not k.startswith("GGUF.")}
        self._decoded: dict[str, object] = {}

    def __getitem__(self, key: str) -> object:
        if key not in self._decoded:
            self._decoded[key] = self._fields[key].contents()
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass(frozen=True)
class Model:
    """An opened, validated GGUF file: config, tensor table, mapped weights."""

    path: Path
    config: Config
    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, object] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of that full name; an unknown name lists its nearest kin."""
        try:
            return self.tensors[name]
        except KeyError:
            kin = [known for known in self.tensors if known.split(".")[-2] in name][:4]
            raise KeyError(f"no tensor {name!r}; there are {kin or len(self.tensors)}") from None

    def layer(self, layer: int, short: str) -> Tensor:
        """Return ``blk.<layer>.<short>.weight``."""
        return self[f"blk.{layer}.{short}.weight"]

    @property
    def output(self) -> Tensor:
        """The output matrix: ``token_embd`` where the file ties them."""
        return self["token_embd.weight" if self.config.tied_output else "output.weight"]

    @property
    def name(self) -> str:
        """``general.name``, or the file's."""
        return str(self.metadata.get("general.name", self.path.stem))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The file's own tokenizer, or None where it has none."""
        return Tokenizer.from_metadata(self.metadata)

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:`` of all tensors, or ``sampled-sha256:`` (64 KiB at three places of each).

        Names, types, shapes and bytes of the tensors and the config enter; tensors that were
        replaced (``replacing``) change it.
        """
        whole = self.weight_bytes <= _HASHED_WHOLE
        digest = hashlib.sha256(repr(self.config).encode())
        for tensor in self.tensors.values():
            digest.update(f"{tensor.name} {tensor.format.name} {tensor.shape}\n".encode())
            raw = tensor.blocks.reshape(-1)
            if whole or raw.size <= 3 * _SAMPLE:
                digest.update(raw.data)
            else:
                middle = raw.size // 2
                for start in (0, middle, raw.size - _SAMPLE):
                    digest.update(raw[start : start + _SAMPLE].data)
        return f"{'sha256' if whole else 'sampled-sha256'}:{digest.hexdigest()[:32]}"

    def replacing(self, blocks: Mapping[str, NDArray[np.uint8]]) -> Model:
        """Return the same model with other bytes for some tensors (planted faults use it)."""
        tensors = dict(self.tensors)
        for name, raw in blocks.items():
            if raw.shape != self[name].blocks.shape or raw.dtype != np.uint8:
                raise ValueError(f"{name}: bytes of shape {raw.shape} do not fit")
            tensors[name] = replace(self[name], blocks=raw)
        return replace(self, tensors=tensors)


def open_model(path: str | Path) -> Model:
    """Open and validate a GGUF model; the weights stay on disk, mapped.

    Raises
    ------
    BadInput
        For anything that is not a well-formed GGUF of a known architecture with exactly the
        tensors that it needs.

    """
    path = Path(path)
    spans = _preflight(path)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the gguf package cannot read it ({error}); damaged file") from None
    metadata = _Metadata(reader)
    _refuse_variants(metadata, path)
    raw = np.asarray(reader.data).view(np.ndarray)
    tensors = {span.name: _tensor(span, raw, path) for span in spans}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadInput(f"{path}: token_embd.weight is missing or no matrix; convert again")
    config = read_config(
        metadata,
        vocab_rows=embedding.shape[0],
        tied_output="output.weight" not in tensors,
        path=str(path),
    )
    _check_table(tensors, config, path)
    return Model(path, config, tensors, metadata)


def _preflight(path: Path) -> list[TensorSpan]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise BadInput(f"{path}: {size} bytes, too short for a GGUF header; name a model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return walk(data, str(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); name a .gguf file") from None


def _refuse_variants(metadata: Mapping[str, object], path: Path) -> None:
    """Refuse what this architecture's table does not describe, rather than ignore it."""
    split = metadata.get("split.count", 0)
    if isinstance(split, int) and split > 1:
        raise BadInput(f"{path}: one of {split} split files; merge them (gguf-split --merge)")
    for key in metadata:
        if re.fullmatch(r"\w+\.rope\.scaling\.type", key) and metadata[key] != "none":
            raise BadInput(f"{path}: {key} is {metadata[key]!r}; scaled RoPE is not supported")


def _tensor(span: TensorSpan, raw: NDArray[np.uint8], path: Path) -> Tensor:
    name = gguf.GGMLQuantizationType(span.kind).name
    fmt = FORMATS.get(name)
    if fmt is None:
        raise BadInput(
            f"{path}: tensor {span.name} has the unsupported type {name}, expected one of "
            f"{', '.join(FORMATS)}; quantise it to one of those"
        )
    blocks = raw[span.start : span.start + span.size]
    shape = (*span.shape[:-1], fmt.row_bytes(span.shape[-1]))
    return Tensor(span.name, fmt, span.shape, blocks.reshape(shape))


def _check_table(tensors: Mapping[str, Tensor], config: Config, path: Path) -> None:
    if config.layers > len(tensors):
        raise BadInput(
            f"{path}: block_count is {config.layers}, but there are only {len(tensors)} tensors"
        )
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise BadInput(f"{path}: tensor {name} is missing (shape {list(shape)} expected)")
        if tensors[name].shape != shape:
            raise BadInput(
                f"{path}: tensor {name} has shape {list(tensors[name].shape)}, expected "
                f"{list(shape)}; config and weights disagree"
            )
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise BadInput(
            f"{path}: tensor {unknown[0]} is not part of {config.architecture} "
            f"({len(unknown)} such); leaving it out would compute another model"
        )
