"""Where candidate, oracle, guard and meter come together: for commands and benchmarks alike."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch

from harness.backends import chosen_backend, open_decoder
from harness.errors import BadInput
from harness.guard import guard
from harness.guard.drift import Drift, measure_drift
from harness.guard.peer import PeerReference
from harness.guard.product import Product, guard_products
from harness.meter.decode import DecodeMeasurement, Workload, measure_decode
from harness.meter.instruments import GpuInstruments, HostInstruments, Instruments
from harness.meter.kernel import KernelMeasurement, measure_kernel
from harness.meter.nvml import Gpu
from harness.numerics import find_numerics
from harness.profile.marks import mark_tokens
from harness.profile.session import Wanted, profile_decode
from harness.profile.tracers import CuptiTracer, PhaseTracer, check_cupti
from harness.reference import Oracle
from harness.settings import settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from harness.decoder import Decoder
    from harness.guard import Evidence
    from harness.guard.product import ProductEvidence
    from harness.meter.decode import Cache, GuardedRun
    from harness.meter.stopping import StoppingRule
    from harness.model import Model
    from harness.numerics import Numerics
    from harness.profile import Recording


def open_oracle(model: Model, numerics: Numerics, capacity: int, gpu: int = 0) -> Oracle:
    """Open the oracle that rounds where a numerics does, on a GPU where there is one.

    Raises
    ------
    BadInput
        Where the environment names another place than ``cpu`` or ``cuda``.

    """
    place = settings().oracle or ("cuda" if torch.cuda.is_available() else "cpu")
    if place not in ("cpu", "cuda"):
        raise BadInput(f"MOE_HARNESS_ORACLE is {place!r}, expected cpu or cuda")
    device = f"cuda:{gpu}" if place == "cuda" else "cpu"
    return Oracle(model, device, numerics.oracle_activation, capacity, numerics.cache)


def open_candidate(
    model: Model,
    *,
    backend: str,
    numerics: str | None,
    device: int,
    capacity: int,
    plant: str | None = None,
) -> Decoder:
    """Open a decoder, with a fault planted in it where ``plant`` names one."""
    return open_decoder(
        model, backend=backend, numerics=numerics, capacity=capacity, device=device, plant=plant
    )


def open_pair(
    model: Model, *, backend: str, numerics: str | None, device: int, against: str, capacity: int
) -> tuple[Decoder, Oracle]:
    """Open a candidate and what it is held against.

    ``against`` is ``oracle`` or ``BACKEND:NUMERICS``: of the CPU, or of the candidate's backend.
    A CPU decoder keeps its cache as the candidate does, so that the cache is not what differs.
    """
    candidate = open_decoder(
        model, backend=backend, numerics=numerics, capacity=capacity, device=device
    )
    if against == "oracle":
        return candidate, open_oracle(model, candidate.numerics, capacity, device)
    backend, colon, name = against.partition(":")
    if not colon or backend not in ("cpu", candidate.backend):
        raise BadInput(
            f"--against {against!r}, expected oracle, cpu:f32, cpu:q8_k or another numerics of "
            f"the {candidate.backend} backend, as in {candidate.backend}:{candidate.numerics.name}"
        )
    peer = open_decoder(
        model,
        backend=backend,
        numerics=name,
        capacity=capacity,
        device=device,
        cache=candidate.numerics.cache if backend == "cpu" else None,
    )
    return candidate, PeerReference(peer, capacity)


def parity(
    model: Model,
    ids: Sequence[int],
    *,
    backend: str,
    numerics: str | None,
    plant: str | None = None,
) -> Evidence:
    """Hold a decoder against the oracle on a prompt, free-running and teacher-forced."""
    candidate = open_candidate(
        model,
        backend=backend,
        numerics=numerics,
        device=0,
        capacity=len(ids),
        plant=plant,
    )
    try:
        return guard(candidate, open_oracle(model, candidate.numerics, len(ids)), ids)
    finally:
        candidate.close()


def guarded_kernel(
    model: Model, family: str, numerics: str, rule: StoppingRule | None = None
) -> KernelMeasurement:
    """Time one family of the CPU decoder's products, held against float64.

    Raises
    ------
    Rejected
        By the guard, or because a timed launch was not the guarded one.

    """
    from harness.backends.cpu.kernels import ProductKernel  # noqa: PLC0415 - it compiles

    kernel = ProductKernel(model, family, find_numerics(numerics))

    def check(_kernel: object) -> ProductEvidence:
        pairs = [
            (result, Product(*operand))
            for copy in range(kernel.distinct)
            for result, operand in zip(kernel.results(copy), kernel.operands[copy], strict=True)
        ]
        results, products = zip(*pairs, strict=True)
        return guard_products(family, kernel.numerics, results, products, kernel.ran())

    return measure_kernel(kernel, check, rule=rule)


def activation_drift(candidate: Decoder, ids: Sequence[int]) -> Drift:
    """Measure the free-running drift of a candidate that rounds its activations."""
    rounding = open_oracle(candidate.model, candidate.numerics, len(ids))
    # Only the activations differ: a rounded cache is in both, and is not blamed on them.
    exact = replace(candidate.numerics, activation="f32")
    plain = open_oracle(candidate.model, exact, len(ids))
    return measure_drift(candidate, rounding, plain, ids)


def guarded_decode(
    model: Model,
    prompt: Sequence[int],
    *,
    backend: str = "auto",
    numerics: str | None = None,
    device: int = 0,
    tokens: int = 64,
    depth: int = 0,
    plant: str | None = None,
    rule: StoppingRule | None = None,
) -> DecodeMeasurement:
    """Decode, guard, and measure once; the only way from a model to a number.

    Raises
    ------
    Rejected
        By the guard, or because the timed run was not the guarded one.

    """
    with DecodeSession(
        model, backend=backend, numerics=numerics, device=device, plant=plant
    ) as session:
        return session.measure(prompt, tokens=tokens, depth=depth, rule=rule)


class DecodeSession:
    """Guarded decodes of one model, one after the other, on weights that are loaded once."""

    def __init__(
        self,
        model: Model,
        *,
        backend: str = "auto",
        numerics: str | None = None,
        device: int = 0,
        plant: str | None = None,
    ) -> None:
        self._model, self._backend, self._numerics = model, chosen_backend(backend), numerics
        self._device, self._plant = device, plant
        self._watched = watched_gpu(self._backend, device)
        self._decoder: Decoder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._decoder is not None:
            self._decoder.close()
        if self._watched is not None:
            self._watched.close()

    def measure(
        self,
        prompt: Sequence[int],
        *,
        tokens: int,
        depth: int = 0,
        rule: StoppingRule | None = None,
    ) -> DecodeMeasurement:
        """Decode ``tokens`` after ``prompt``, with ``depth`` positions cached before.

        Raises
        ------
        Rejected
            By the guard, or because the timed run was not the guarded one.
        BadInput
            Where that is more than the model's context.

        """
        workload = Workload(tuple(prompt), depth, tokens)
        return measure_decode(
            self._open(self._capacity(workload)),
            workload,
            self._check,
            instruments=self._instruments(),
            rule=rule,
        )

    def profile(
        self,
        workload: Workload,
        wanted: Wanted,
        *,
        rule: StoppingRule | None = None,
    ) -> Recording:
        """Record where the time of a guarded decode's tokens goes.

        Raises
        ------
        Rejected
            By the guard, or because a pass was not the guarded one; unless ``wanted.unguarded``.
        BadInput
            Where nothing can be recorded, or that is more than the model's context.

        """
        if self._watched is not None:
            check_cupti()  # before minutes are spent
        return profile_decode(
            self._open(self._capacity(workload)),
            workload,
            self._check,
            PhaseTracer() if self._watched is None else CuptiTracer(self._device),
            instruments=self._instruments(),
            wanted=wanted,
            rule=rule,
            state=None if self._watched is None else self._watched.state,
        )

    def mark(self, workload: Workload, *, unguarded: bool = False) -> GuardedRun:
        """Guard a decode, then mark its tokens for nsys or ncu (``profile.marks``).

        Raises
        ------
        Rejected
            As ``profile``.
        BadInput
            Without a GPU, or NVTX in torch.

        """
        if self._watched is None:
            raise BadInput("--nvtx marks tokens on a GPU, this is the cpu backend; leave it out")
        return mark_tokens(
            self._open(self._capacity(workload)), workload, self._check, unguarded=unguarded
        )

    def _capacity(self, workload: Workload) -> int:
        """Positions that a workload takes."""
        depth, prompt, tokens = workload.depth, len(workload.prompt), workload.tokens
        context, capacity = self._model.config.context_length, depth + prompt + tokens
        if capacity > context:
            raise BadInput(
                f"{depth} cached + {prompt} prompt + {tokens} tokens are {capacity} "
                f"positions, but the model's context is {context}; ask for fewer"
            )
        return capacity

    def _instruments(self) -> Instruments:
        return instruments_of(self._device, self._watched)

    def _open(self, capacity: int) -> Decoder:
        """Open a decoder of that capacity, with the last one's weights; the last one is closed."""
        if self._decoder is None:
            self._decoder = open_decoder(
                self._model,
                backend=self._backend,
                numerics=self._numerics,
                capacity=capacity,
                device=self._device,
                plant=self._plant,
            )
        else:
            last, self._decoder = self._decoder, self._decoder.sibling(capacity)
            last.close()
        return self._decoder

    def _check(self, candidate: Decoder, ids: Sequence[int], cache: Cache | None) -> Evidence:
        with self._oracle_of(candidate) as oracle:
            return guard(candidate, oracle, ids, cache=cache)

    def _oracle_of(self, candidate: Decoder) -> AbstractContextManager[Oracle]:
        """Open the oracle; closed on exit, as it may not be resident while memory is measured."""
        numerics, capacity = candidate.numerics, candidate.capacity
        return closing(open_oracle(self._model, numerics, capacity, self._device))


def watched_gpu(backend: str, device: int) -> Gpu | None:
    """Open the GPU that a decoder will use for NVML, before anything is allocated on it."""
    if backend != "cuda":
        return None
    from harness.backends.cuda.gpu import find_gpu  # noqa: PLC0415 - needs CUDA

    gpu = Gpu.open(find_gpu(device).uuid)
    gpu.memory_baseline()
    return gpu


def instruments_of(device: int, watched: Gpu | None) -> Instruments:
    """What a decoder's measurement is read off from; ``watched`` None: on the CPU."""
    if watched is None:
        return HostInstruments()
    from harness.backends.cuda.bandwidth import gpu_read_bandwidth  # noqa: PLC0415
    from harness.backends.cuda.gpu import open_gpu  # noqa: PLC0415

    return GpuInstruments(watched, lambda: gpu_read_bandwidth(open_gpu(device)))
