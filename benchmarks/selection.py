"""A part of a suite's parameters, for runs over many commits.

asv's ``--bench`` chooses what is asked for, but what a class measures together, in ``setup_cache``,
it measures whole. This lies beside the benchmarks, not in ``harness``: asv takes it from the
checkout, and the package from the commit.
"""

import os

from harness.numerics import CUDA_NUMERICS

DEPTHS = [0, 512, 4096, 32768]
BATCHES = [2, 4, 8]
_KNOWN = {
    "MOE_HARNESS_BATCHES": [str(size) for size in BATCHES],
    "MOE_HARNESS_DEPTHS": [str(depth) for depth in DEPTHS],
    "MOE_HARNESS_NUMERICS": list(CUDA_NUMERICS),
}


def depths(parameters):
    """Those of the depths that ``MOE_HARNESS_DEPTHS`` names, by commas; all without it."""
    return _chosen(parameters, "MOE_HARNESS_DEPTHS")


def batches(parameters):
    """Those of the batches that ``MOE_HARNESS_BATCHES`` names, by commas; all without it."""
    return _chosen(parameters, "MOE_HARNESS_BATCHES")


def numerics(parameters):
    """Those of the numerics that ``MOE_HARNESS_NUMERICS`` names, by commas; all without it."""
    return _chosen(parameters, "MOE_HARNESS_NUMERICS")


def require(outcomes, *key):
    """For ``setup``: n/a what was left out; else as the outcome says."""
    place = key[0] if len(key) == 1 else key
    if place not in outcomes:
        raise NotImplementedError("left out of this run")
    outcomes[place].require()


def _chosen(parameters, variable):
    named = os.environ.get(variable)
    if not named:
        return list(parameters)
    wanted = [name.strip() for name in named.split(",")]
    unknown = [name for name in wanted if name not in _KNOWN[variable]]
    if unknown:
        raise SystemExit(
            f"{variable} names {', '.join(map(repr, unknown))}, expected some of "
            f"{', '.join(_KNOWN[variable])}"
        )
    return [parameter for parameter in parameters if str(parameter) in wanted]
