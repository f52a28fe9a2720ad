"""Read bandwidth of a GPU, measured by a kernel that only reads."""

from __future__ import annotations

import functools
import statistics

from harness.backends.cuda.gpu import Gpu, translated
from kernels.family import Heads, Variant
from kernels.read_bandwidth import ReadBandwidth

_MOST_BYTES = 8 << 30
_SHARE_OF_FREE = 0.5
_BLOCKS_EACH = (2, 4, 8)  # a multiprocessor; the best of them counts
_REPEATS = 5


@functools.cache
def gpu_read_bandwidth(gpu: Gpu) -> float:
    """Bytes per second: the median of several passes, of the best number of blocks.

    Takes 8 GB for it, or half of what is free, and gives it back.
    """
    from pycuda import driver  # noqa: PLC0415 - an extra

    nbytes = min(_MOST_BYTES, int(gpu.free_bytes() * _SHARE_OF_FREE)) // 4096 * 4096
    with translated("measuring its read bandwidth"):
        reader = ReadBandwidth(gpu.program(Variant(), Heads()))
        stream = driver.Stream()
        buffer, out = driver.mem_alloc(nbytes), driver.mem_alloc(4)
        try:
            driver.memset_d32(int(buffer), 0x5A5A5A5A, nbytes // 4)
            best = 0.0
            for blocks in _BLOCKS_EACH:
                times = []
                for _ in range(1 + _REPEATS):
                    start, end = driver.Event(), driver.Event()
                    start.record(stream)
                    reader.read_all(
                        buffer=int(buffer),
                        nbytes=nbytes,
                        out=int(out),
                        blocks_each=blocks,
                        stream=stream,
                    )
                    end.record(stream)
                    end.synchronize()
                    times.append(end.time_since(start) / 1e3)
                best = max(best, nbytes / statistics.median(times[1:]))
        finally:
            buffer.free()
            out.free()
    return best
