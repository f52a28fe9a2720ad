"""A model's weights on the GPU: uploaded once, shared by decoders, freed with the last of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.backends.cuda.memory import DeviceMemory, Tiler
from kernels.fold import Fold
from kernels.pack import Pack
from kernels.weights import can_be_tiled

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    import numpy as np

    from harness.model import Model
    from kernels.compiler import Program

# Short names of matrices that one kernel reads together.
_READ_TOGETHER = (
    ("attn_q", "attn_k", "attn_v"),
    ("attn_output",),
    ("ffn_gate_exps", "ffn_up_exps"),
    ("ffn_down_exps",),
)

# What announces the router's logits, and what chooses by them.
_READ_ANNOUNCED = ("attn_output", "ffn_gate_exps", "ffn_up_exps")


@dataclass(frozen=True)
class Layer:
    """One layer: the addresses of its norms, and its matrices.

    ``folded`` is the address of the router behind ``o`` (``kernels/fold.cu``), or 0.
    """

    index: int
    attn_norm: int
    q: np.void
    k: np.void
    v: np.void
    q_norm: int
    k_norm: int
    o: np.void
    ffn_norm: int
    router: np.void
    gate: np.void
    up: np.void
    down: np.void
    folded: int = 0


class Held:
    """A decoder's share in weights; ``release`` gives it back."""

    def __init__(self, weights: DeviceWeights) -> None:
        self._weights: DeviceWeights | None = weights

    def release(self) -> None:
        """Give it back; the last one frees the memory. A second call does nothing."""
        if self._weights is not None:
            self._weights.given_back()
            self._weights = None


class DeviceWeights:
    """All of a model's tensors on the GPU, as the kernels read them.

    Parameters
    ----------
    model
        The opened model.
    program
        For this GPU.
    tiles
        Whether the numerics has tiles: what shapes allow is cut into them.

    """

    def __init__(self, model: Model, program: Program, *, tiles: bool) -> None:
        self._model, self._memory, self._holders = model, DeviceMemory(), 0
        try:
            self._memory.reserve(weight_sizes(model, tiles=tiles), "weights")
            self._upload(program, _tiled_names(model) if tiles else set())
        except BaseException:
            self._memory.free()
            raise

    def _upload(self, program: Program, tiled: set[str]) -> None:
        from pycuda import driver  # noqa: PLC0415 - an extra

        tiler = Tiler(Pack(program), driver.Stream()) if tiled else None
        tables = {
            name: self._memory.weights(tensor, tiler if name in tiled else None)
            for name, tensor in self._model.tensors.items()
            if len(tensor.shape) > 1
        }
        if tiler is not None:
            tiler.close()
        self.table = tables["token_embd.weight"]
        self.output = tables[self._model.output.name]
        folded = _folded_layers(self._model, tiled)
        self.layers = [self._layer(n, tables) for n in range(self._model.config.layers)]
        for n in folded:
            self.layers[n] = self._folded(self.layers[n], program, driver.Stream())
        self.final_norm = self._vector("output_norm.weight")

    @property
    def by_purpose(self) -> Counter[str]:
        """Bytes by quant format."""
        return self._memory.by_purpose

    def hold(self) -> Held:
        """Take a share in them."""
        self._holders += 1
        return Held(self)

    def given_back(self) -> None:
        """One share less; without any the memory is freed."""
        self._holders -= 1
        if not self._holders:
            self._memory.free()

    def _layer(self, index: int, tables: Mapping[str, np.void]) -> Layer:
        def matrix(short: str) -> np.void:
            return tables[f"blk.{index}.{short}.weight"]

        def vector(short: str) -> int:
            return self._vector(f"blk.{index}.{short}.weight")

        return Layer(
            index,
            attn_norm=vector("attn_norm"),
            q=matrix("attn_q"),
            k=matrix("attn_k"),
            v=matrix("attn_v"),
            q_norm=vector("attn_q_norm"),
            k_norm=vector("attn_k_norm"),
            o=matrix("attn_output"),
            ffn_norm=vector("ffn_norm"),
            router=matrix("ffn_gate_inp"),
            gate=matrix("ffn_gate_exps"),
            up=matrix("ffn_up_exps"),
            down=matrix("ffn_down_exps"),
        )

    def _folded(self, layer: Layer, program: Program, stream: Any) -> Layer:  # noqa: ANN401 - PyCUDA's
        """Fold the router behind the attention's output."""
        folded = self._memory.take(_folded_bytes(self._model), "weights folded router")
        plain = DeviceMemory()
        try:
            o = plain.weights(self._model.layer(layer.index, "attn_output"))
            Fold(program).fold(layer.router, o, norm=layer.ffn_norm, folded=folded, stream=stream)
            stream.synchronize()
        finally:
            plain.free()
        return replace(layer, folded=folded)

    def _vector(self, name: str) -> int:
        return self._memory.array(self._model[name].values(), "weights norms")


def weight_sizes(model: Model, *, tiles: bool) -> list[int]:
    """Bytes of all that weights become on the GPU, one by one."""
    sizes = [
        tensor.nbytes if len(tensor.shape) > 1 else 4 * tensor.shape[0]
        for tensor in model.tensors.values()
    ]
    folded = _folded_layers(model, _tiled_names(model)) if tiles else []
    return sizes + [_folded_bytes(model)] * len(folded)


def _folded_bytes(model: Model) -> int:
    return 4 * model.config.experts * model.config.q_width


def _folded_layers(model: Model, tiled: set[str]) -> list[int]:
    """Layers whose router the kernels over tiles can have folded behind the attention's output."""
    return [
        layer
        for layer in range(model.config.layers)
        if {f"blk.{layer}.{short}.weight" for short in _READ_ANNOUNCED} <= tiled
        and model.layer(layer, "ffn_gate_inp").format.name == "F32"
    ]


def _tiled_names(model: Model) -> set[str]:
    """Matrices that become tiles; those that one kernel reads do so together or not at all."""
    groups = [
        [f"blk.{layer}.{short}.weight" for short in together]
        for layer in range(model.config.layers)
        for together in _READ_TOGETHER
    ]
    if not model.config.tied_output:  # else it is the embedding, which is read by rows
        groups.append(["output.weight"])
    return {
        name
        for group in groups
        for name in group
        if all(can_be_tiled(model[other].format.name, model[other].shape) for other in group)
    }
