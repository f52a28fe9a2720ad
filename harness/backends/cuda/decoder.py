"""The CUDA decoder: the ``qwen3moe`` forward pass of FACTS, one graph replay a token."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.backends.cuda.family_clock import FamilyClock
from harness.backends.cuda.forward import POSITION, TOKEN, Forward
from harness.backends.cuda.gpu import Gpu, open_gpu, translated
from harness.backends.cuda.graph import Graph
from harness.backends.cuda.memory import DeviceMemory, download, poison_f16, poison_f32, upload
from harness.backends.cuda.shape import check_shape
from harness.backends.cuda.trace import Trace
from harness.backends.cuda.weights import DeviceWeights, Held, weight_sizes
from harness.decoder import TimedPass, check_filling, check_rewind, check_step
from harness.errors import BadInput
from kernels import FAMILIES
from kernels.compiler import python_code, source_hash
from kernels.family import Heads, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.model import Config, Model
    from harness.numerics import Numerics
    from harness.stages import Capture
    from kernels.compiler import Program

    Floats = NDArray[np.float32]

# Faults that this backend can be told to plant: in its kernels, or here.
_CACHED_OUTPUT = "cached_output"
PLANTS = (*(plant for family in FAMILIES for plant in family.plants), _CACHED_OUTPUT)

# Bytes beside weights and cache: of a decoder, and of each further sequence.
_SCRATCH, _SCRATCH_OF_ANOTHER = 64 << 20, 8 << 20


class CudaDecoder:
    """A decoder of one sequence on a GPU (``harness.decoder.Decoder``).

    Weights are uploaded once; the KV cache is float16, ``[layers, capacity, kv_heads, head_dim]``.
    Position and token live on the device: decoding needs no word from the host. Traced and
    teacher-forced steps run the same kernels in the same order out of graphs of their own, whose
    kernels also write their stages.

    Parameters
    ----------
    model
        The opened model.
    numerics
        One of the cuda backend's.
    capacity
        Positions in the KV cache.
    device
        Which GPU.
    plant
        A fault to plant (``PLANTS``), None for none.
    weights, program
        A sibling's, and its kernels if it is of this numerics; uploaded and loaded unless given.

    Attributes
    ----------
    stream
        PyCUDA's, that everything is launched on.

    Raises
    ------
    HardwareAbsent
        Without a GPU, its driver or nvcc.
    BadInput
        Where the model does not fit the GPU, or has a shape that the kernels cannot have.
    KeyError
        For an unknown fault.

    """

    backend = "cuda"

    def __init__(
        self,
        model: Model,
        numerics: Numerics,
        capacity: int,
        device: int = 0,
        plant: str | None = None,
        weights: DeviceWeights | None = None,
        program: Program | None = None,
    ) -> None:
        if capacity < 1:
            raise BadInput(f"a cache of {capacity} positions, expected at least 1")
        if plant is not None and plant not in PLANTS:
            raise KeyError(f"no fault {plant!r} to plant; there are {', '.join(PLANTS)}")
        self.gpu = open_gpu(device)
        self.model, self.numerics, self.capacity = model, numerics, capacity
        self.device, self.device_id = self.gpu.name, self.gpu.uuid
        self.position = 0
        self.cache_bytes = cache_bytes(model.config, capacity)
        self._plant, self._program = plant, program
        self._before: Floats | None = None
        self._memory, self._traced = DeviceMemory(), DeviceMemory()
        self._weights = weights
        self._held: Held | None = None
        self._graphs: dict[str, Graph] = {}
        check_shape(model.config, self.gpu, numerics.activation, tiles=_has_tiles(numerics))
        needed = sum(weight_sizes(model, tiles=_has_tiles(numerics)))
        check_room(self.gpu, 0 if weights else needed, self.cache_bytes)
        try:
            with translated("opening the decoder"):
                self._open(plant)
        except BaseException:
            self.close()
            raise

    def _open(self, plant: str | None) -> None:
        from pycuda import driver  # noqa: PLC0415 - an extra

        c = self.model.config
        self.stream = driver.Stream()
        if self._program is None:
            heads = Heads(c.head_dim, c.heads // c.kv_heads)
            self._program = self.gpu.program(variant_of(self.numerics, plant), heads)
        program = self._program
        if self._weights is None:
            self._weights = DeviceWeights(self.model, program, tiles=_has_tiles(self.numerics))
        self._held = self._weights.hold()
        self._forward = Forward(c, program, self._weights, self._memory, self.capacity, self.stream)
        self._trace: Trace | None = None
        self._forced = 0  # address of teacher-forced inputs, once there are some
        self._staging = driver.pagelocked_empty(c.vocab, np.float32)
        self._rehearse()

    # -- the protocol --------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the sequence; what the cache still holds is never read."""
        self._go_to(0)

    def rewind(self, position: int) -> None:
        """Go back to an earlier position; the cache before it stays as it is."""
        check_rewind(self, position)
        self._go_to(position)

    def step(
        self,
        token: int,
        capture: Capture | None = None,
        forced: NDArray[np.float32] | None = None,
    ) -> Floats:
        """Decode one token at the next position (``harness.decoder.Decoder.step``)."""
        check_step(self, token, forced)
        with translated(f"decoding position {self.position}"):
            return self._step(token, capture, forced)

    def _step(
        self, token: int, capture: Capture | None, forced: NDArray[np.float32] | None
    ) -> Floats:
        traced = capture is not None or forced is not None
        if traced and self._trace is None:
            self._trace = Trace(self.model.config, self._traced)
        if self._trace is not None and traced:
            self._trace.poison()
        if forced is not None:
            if not self._forced:
                self._forced = self._traced.floats(forced.size, "trace")
            upload(self._forced, forced.astype(np.float32, copy=False))
        self.put(token)
        graph = self._graph("forced" if forced is not None else "traced" if traced else "plain")
        graph.replay(self.stream)
        self.stream.synchronize()
        logits = self.taken()
        if capture is not None and self._trace is not None:
            self._trace.read(capture)
            capture.put("lm_head", None, logits)
        return logits

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """Decode ``prompt`` and then ``count`` tokens greedily, from the present position on.

        The last of them is not decoded itself: ``len(prompt) + count - 1`` positions are used.
        """
        if not prompt:
            raise BadInput("the prompt is empty; give at least one token")
        for token in prompt:
            self.step(token)
        start = self.position
        if start + count - 1 > self.capacity:
            raise BadInput(f"the cache is full at {self.capacity} positions; ask for a larger one")
        with translated("generating"):
            for _ in range(count - 1):
                self._graph("plain").replay(self.stream)
            self.stream.synchronize()
        self.position = start + max(0, count - 1)
        return self.chosen(start - 1, count)

    def timed_pass(self, prompt: Sequence[int], count: int) -> TimedPass:
        """Decode ``prompt``, then ``count`` tokens of the device's own choosing, timed by events.

        Between two tokens the host says nothing: an event is recorded, the graph is replayed.
        """
        from pycuda import driver  # noqa: PLC0415

        for token in prompt:
            self.step(token)
        start = self.position
        if start + count > self.capacity:
            raise BadInput(f"the cache is full at {self.capacity} positions; ask for a larger one")
        graph = self._graph("plain")
        events = [driver.Event() for _ in range(count + 1)]
        with translated("decoding against the clock"):
            events[0].record(self.stream)
            for event in events[1:]:
                graph.replay(self.stream)
                event.record(self.stream)
            self.stream.synchronize()
            times = [float(b.time_since(a)) for a, b in pairwise(events)]
        self.position = start + count
        return TimedPass(times, self.chosen(start - 1, count + 1), {count: self.logits()})

    def fill_cache(self, keys: Floats, values: Floats) -> None:
        """Fill the cache from position 0 (``harness.decoder.Decoder.fill_cache``)."""
        check_filling(self, keys, values)
        positions = keys.shape[1]
        for cache, filled in ((self._forward.keys, keys), (self._forward.values, values)):
            for layer in range(self.model.config.layers):
                # torch rounds on all cores, numpy on one: a long cache has billions of values.
                halves = torch.from_numpy(np.ascontiguousarray(filled[layer])).to(torch.float16)
                upload(cache + 2 * layer * self._forward.layer_cache, halves.numpy())
        self._go_to(positions)

    def family_clock(self, token: int) -> FamilyClock:
        """Time kernel families by themselves (``harness.decoder.FamilyTimed.family_clock``)."""
        if not self.position:
            raise ValueError("no step was made: there is none to repeat")
        return FamilyClock(
            self._forward,
            self.stream,
            position=self.position - 1,
            token=token,
            capacity=self.capacity,
            overlapped=self.gpu.overlaps,
        )

    def sibling(
        self, capacity: int, numerics: Numerics | None = None, plant: str | None = None
    ) -> CudaDecoder:
        """Open another decoder on the same weights (``harness.decoder.Decoder.sibling``).

        Of another numerics, where one is given that reads weights of the same form; with this one's
        fault, or with ``plant``.
        """
        numerics, plant = numerics or self.numerics, plant or self._plant
        if not self.shares_weights_with(numerics):
            raise ValueError(f"{numerics.name} and {self.numerics.name} share no weights")
        # Loaded once for all: each copy of the kernels takes memory of the GPU.
        same = (numerics, plant) == (self.numerics, self._plant)
        return CudaDecoder(
            self.model,
            numerics,
            capacity,
            self.gpu.ordinal,
            plant,
            weights=self._on_device,
            program=self._program if same else None,
        )

    def shares_weights_with(self, numerics: Numerics) -> bool:
        """Whether a numerics reads the form, tiles or not, that these weights have on the GPU."""
        return _has_tiles(numerics) == _has_tiles(self.numerics)

    @property
    def _on_device(self) -> DeviceWeights:
        if self._weights is None:
            raise RuntimeError("a decoder that is not open has no weights")
        return self._weights

    def ran(self) -> dict[str, object]:
        """Say what computes."""
        return {
            **self.ran_on(),
            "graph_nodes": self._graph("plain").nodes,
            "memory_by_purpose": {**self.weights_memory, **self.own_memory},
        }

    def ran_on(self) -> dict[str, object]:
        """Say what computes, but for graphs and memory."""
        return {
            "backend": self.backend,
            "device": self.device,
            "device_id": self.device_id,
            **self.gpu.to_json(),
            "numerics": self.numerics.name,
            "cache": self.numerics.cache,
            "source_hash": gpu_source_hash(),
        }

    @property
    def own_memory(self) -> dict[str, int]:
        """Bytes by purpose that this decoder took by itself."""
        return {**self._memory.by_purpose, **self._traced.by_purpose}

    @property
    def weights_memory(self) -> dict[str, int]:
        """Bytes of the weights by quant format, whoever shares them."""
        return dict(self._on_device.by_purpose)

    def close(self) -> None:
        """Free all device memory."""
        self.let_go()
        self._memory.free()
        if self._held is not None:
            self._held.release()
            self._held = None

    # -- one of several sequences (``harness.backends.cuda.batch``) ------------------------------

    def put(self, token: int) -> None:
        """Say which token comes next."""
        upload(self._forward.state + TOKEN, np.array([token], dtype=np.int32))

    def launch(self) -> None:
        """Launch the next token's kernels on ``stream``, which is being captured."""
        self._forward.token()

    def taken(self) -> Floats:
        """Take the logits of a token that has been decoded, and count it; float32 ``[vocab]``."""
        self.position += 1
        return self._shown(self.logits())

    def logits(self) -> Floats:
        """Download the last token's logits, float32 ``[vocab]``."""
        download(self._forward.logits, self._staging)
        copy: Floats = self._staging.copy()
        return copy

    def poison(self, count: int) -> None:
        """Spoil what the next ``count`` tokens are to leave: their logits, and what is chosen."""
        poison_f32(self._forward.logits, self.model.config.vocab)
        absent = np.full(count, -1, dtype=np.int32)
        upload(self._forward.tokens + 4 * self.position, absent)

    def moved(self, count: int) -> None:
        """Count tokens that the device has decoded by itself."""
        self.position += count

    def chosen(self, first: int, count: int) -> list[int]:
        """Tokens that the device chose at ``count`` positions from ``first`` on."""
        tokens = np.empty(count, dtype=np.int32)
        download(self._forward.tokens + 4 * first, tokens)
        return [int(token) for token in tokens]

    def let_go(self) -> None:
        """Free what tracing took, and all graphs; they are made anew when they are asked for."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._traced.free()
        self._trace, self._forced = None, 0

    # -- graphs --------------------------------------------------------------------------------

    def _graph(self, kind: str) -> Graph:
        if kind not in self._graphs:
            graph = Graph(overlapped=self.gpu.overlaps)
            trace = None if kind == "plain" else self._trace
            with graph.captured(self.stream):
                self._forward.token(trace, self._forced if kind == "forced" else 0)
            self._graphs[kind] = graph
        return self._graphs[kind]

    def _rehearse(self) -> None:
        """Run one token launch by launch: a kernel that faults is named, with its layer."""

        def wait(name: str) -> None:
            with translated(f"in kernel {name} {self._forward.place}"):
                self.stream.synchronize()

        for kernel in self._forward.kernels:
            kernel.after = wait
        self._forward.token()
        for kernel in self._forward.kernels:
            kernel.after = lambda _name: None
        # Nothing of it may stay: position 0 is NaN again.
        c = self.model.config
        for cache in (self._forward.keys, self._forward.values):
            poison_f16(cache, c.layers * self._forward.layer_cache)
        self._go_to(0)

    def _go_to(self, position: int) -> None:
        upload(self._forward.state + POSITION, np.array([position], dtype=np.int32))
        self.position, self._before = position, None

    def _shown(self, logits: Floats) -> Floats:
        """What a step returns: the logits, unless that fault is planted."""
        if self._plant != _CACHED_OUTPUT:
            return logits
        before, self._before = self._before, logits
        return logits if before is None else before


def variant_of(numerics: Numerics, plant: str | None = None) -> Variant:
    """How the kernels are compiled for a numerics."""
    return Variant(
        accumulator=numerics.accumulator,
        activation=numerics.activation,
        softmax=numerics.softmax,
        weighted_sum=numerics.weighted_sum,
        swiglu=numerics.swiglu,
        top_k_epsilon=numerics.top_k_epsilon,
        plant=plant,
    )


def _has_tiles(numerics: Numerics) -> bool:
    return numerics.activation == "i24"


def gpu_source_hash() -> str:
    """Hash of all that computes on a GPU: kernels, launchers, options and this package."""
    digest = hashlib.sha256(source_hash().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code = python_code(path.read_text(encoding="utf-8"))
        digest.update(f"{path.name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def cache_bytes(config: Config, capacity: int) -> int:
    """Bytes of the KV cache of one sequence."""
    return 2 * 2 * config.layers * capacity * config.kv_width


def check_room(gpu: Gpu, weights: int, cache: int, sequences: int = 1) -> None:
    """Say how much is needed before anything is uploaded; ``cache`` is of one sequence.

    Raises
    ------
    BadInput
        Where the GPU has less free.

    """
    needed = weights + sequences * cache + _SCRATCH + (sequences - 1) * _SCRATCH_OF_ANOTHER
    free = gpu.free_bytes()
    if needed > free:
        several = "" if sequences == 1 else f" of {sequences} sequences"
        fewer = "" if sequences == 1 else ", fewer sequences"
        raise BadInput(
            f"{gpu.name} has {free / 1e9:.2f} GB free, but {needed / 1e9:.2f} GB are needed "
            f"({weights / 1e9:.2f} weights, {sequences * cache / 1e9:.2f} KV cache{several}); use "
            f"a larger GPU{fewer} or a shorter context"
        )
