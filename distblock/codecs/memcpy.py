"""What copying bytes takes on this machine: the limit of a hop on one node, and what its bandwidth is held against."""

from __future__ import annotations

import mmap
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where the object store's memory comes from; elsewhere than on Linux, a file's pages."""

PROBE_BYTES = 8 * 2**20
PROBES = 3


def copy_s(source: np.ndarray) -> tuple[float, float]:
    """Seconds of a plain memcpy of an array into shared memory whose pages nobody has touched, and of another one into
    the same. Making and mapping the memory does not count."""
    with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
        file.truncate(source.nbytes)
        with mmap.mmap(file.fileno(), source.nbytes) as memory:
            return _copy_s(source, memory), _copy_s(source, memory)


def memcpy_bytes_per_s() -> float:
    """Rate of a memcpy of 8 MiB into fresh shared memory; takes some 20 ms."""
    source = np.ones(PROBE_BYTES, dtype=np.uint8)
    return PROBE_BYTES / statistics.median(copy_s(source)[0] for _ in range(PROBES))


def _copy_s(source: np.ndarray, memory: mmap.mmap) -> float:
    target = np.frombuffer(memory, dtype=source.dtype)
    begun_s = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - begun_s
