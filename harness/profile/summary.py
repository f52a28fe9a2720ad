"""A profile: what a recording says about each kernel, and about the token as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.profile.kinds import KINDS, Kind, kind_of, layers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.profile.recording import Recording


@dataclass(frozen=True)
class Node:
    """One launch of a token: medians over the tokens recorded, microseconds.

    ``gap_us`` lies between the end of the launch before and this one's start; it is negative where
    the two overlap. Then ``us`` has time in it that was spent waiting for the launch before, and
    ``adds_us``, from its end to this one's, is what the token is longer for it.
    """

    kind: Kind
    layer: int | None
    us: float
    gap_us: float
    bytes: int

    @property
    def adds_us(self) -> float:
        """From the end of the launch before to the end of this one."""
        return self.gap_us + self.us


@dataclass(frozen=True)
class Row:
    """One kernel, all its launches of a token together."""

    kind: Kind
    calls: int
    us: float
    adds_us: float
    share: float  # of ``adds_us`` in the undisturbed token
    bytes: int
    bandwidth_share: float | None  # of this device's, measured; None where no bytes are counted
    gap_us: float

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes over ``adds_us``; None where none are counted, or nothing is added."""
        return self.bytes / (self.adds_us * 1e-6) if self.bytes and self.adds_us > 0 else None


@dataclass(frozen=True)
class Path:
    """A token's critical path, microseconds: what it is made of, and what it is held against.

    Attributes
    ----------
    kernels_us, gaps_us
        Of the token, under the tracer.
    host_us
        From the last kernel of a token to the first of the next, under the tracer.
    traced_us, undisturbed_us
        The token as decode times it, with and without the tracer.
    floor_us
        Bytes over bandwidth.

    """

    kernels_us: float
    gaps_us: float
    host_us: float
    traced_us: float
    undisturbed_us: float
    floor_us: float

    @property
    def sum_us(self) -> float:
        """Kernels, gaps and host."""
        return self.kernels_us + self.gaps_us + self.host_us

    @property
    def left_us(self) -> float:
        """What the undisturbed token leaves for gaps and host beside the kernels' own times."""
        return self.undisturbed_us - self.kernels_us

    @property
    def sum_off(self) -> float:
        """How far the sum is off the undisturbed token, as a share of it."""
        return self.sum_us / self.undisturbed_us - 1

    @property
    def perturbation(self) -> float:
        """What the tracer adds to a token, as a share of it."""
        return self.traced_us / self.undisturbed_us - 1

    @property
    def distance(self) -> float:
        """How many times the floor the undisturbed token takes."""
        return self.undisturbed_us / self.floor_us


class Profile:
    """What a recording says."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """A token's launches in order; the first one's gap is from token to token."""
        traced = self.recording.traced
        us = np.median(traced.ends - traced.starts, axis=0) / 1e3
        ahead = np.roll(traced.ends.reshape(-1), 1).reshape(traced.ends.shape)
        gaps = (traced.starts - ahead).astype(np.float64)
        gaps[0, 0] = np.nan  # nothing was recorded ahead of the first token
        if len(gaps) == 1:
            gaps[0, 0] = 0
        gap_us = np.nanmedian(gaps, axis=0) / 1e3
        return tuple(
            Node(kind_of(name), layer, float(took), float(gap), moved)
            for name, layer, took, gap, moved in zip(
                traced.names,
                layers_of(traced.names, self.recording.layers),
                us,
                gap_us,
                self.recording.bytes,
                strict=True,
            )
        )

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One a kernel, that which adds most first."""
        rows = [
            self._row(kind, nodes)
            for kind in KINDS.values()
            if (nodes := [node for node in self.nodes if node.kind is kind])
        ]
        return tuple(sorted(rows, key=lambda row: -row.adds_us))

    @cached_property
    def path(self) -> Path:
        """The token's critical path."""
        recording = self.recording
        return Path(
            kernels_us=sum(node.us for node in self.nodes),
            gaps_us=sum(node.gap_us for node in self.nodes[1:]),
            host_us=self.nodes[0].gap_us,
            traced_us=float(np.median(recording.traced.token_ms)) * 1e3,
            undisturbed_us=recording.undisturbed.median_ms * 1e3,
            floor_us=sum(recording.bytes) / recording.read_bandwidth * 1e6,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the ``profile`` JSON."""
        recording, path = self.recording, self.path
        return {
            "schema": "moe-harness/profile/1",
            "verdict": recording.verdict,
            "workload": recording.workload,
            "positions": recording.positions,
            "tracer": recording.traced.tracer,
            "tokens_traced": len(recording.traced.starts),
            "kernels": [
                {
                    "name": row.kind.name,
                    "stages": list(row.kind.stages),
                    "calls": row.calls,
                    "us": row.us,
                    "adds_us": row.adds_us,
                    "share": row.share,
                    "bytes": row.bytes,
                    "bytes_per_second": row.bytes_per_second,
                    "bandwidth_share": row.bandwidth_share,
                    "gap_us": row.gap_us,
                }
                for row in self.rows
            ],
            "launches": [
                {
                    "name": node.kind.name,
                    "layer": node.layer,
                    "us": node.us,
                    "gap_us": node.gap_us,
                    "bytes": node.bytes,
                }
                for node in self.nodes
            ],
            "path": {
                **vars(path),
                "sum_us": path.sum_us,
                "sum_off": path.sum_off,
                "left_us": path.left_us,
                "perturbation": path.perturbation,
                "distance": path.distance,
            },
            "undisturbed": vars(recording.undisturbed),
            "bytes_per_token": sum(recording.bytes),
            "read_bandwidth": recording.read_bandwidth,
            "memory": recording.memory,
            "energy": recording.energy,
            "conditions": recording.conditions,
            "ran": recording.ran,
        }

    def _row(self, kind: Kind, nodes: Sequence[Node]) -> Row:
        adds, moved = sum(node.adds_us for node in nodes), sum(node.bytes for node in nodes)
        bandwidth = self.recording.read_bandwidth
        return Row(
            kind,
            calls=len(nodes),
            us=sum(node.us for node in nodes),
            adds_us=adds,
            share=adds / (self.recording.undisturbed.median_ms * 1e3),
            bytes=moved,
            bandwidth_share=moved / (adds * 1e-6) / bandwidth if moved and adds > 0 else None,
            gap_us=sum(node.gap_us for node in nodes),
        )
