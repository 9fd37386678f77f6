"""What this process takes of the machine's memory, without what it only shares with others; and the allocator that
workers have on a CPU.

glibc hands a step's large tensors back to the kernel and faults every page in again at the next step, the more so in
threads other than the first: a tenth of a ResNet-20's time. Told to keep them, it asks for some bytes more than a
tensor has, to align it, and so it often cannot use a hole again that a tensor of the same size has left: the heap goes
on growing for a dozen steps, by up to a third. jemalloc, which Ray brings along on Linux, does neither.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

STATUS = Path("/proc/self/status")

EVERY_S = 0.05
"""Between two looks at it, which take some 15 us; the largest mark waits for the next one."""

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Settings of glibc: it keeps what is freed, in one heap."""

JEMALLOC_KEEPS = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:1"
"""The same of jemalloc."""

_SIZES = re.compile(rb"VmHWM:\s+(\d+) kB.*RssShmem:\s+(\d+) kB", re.DOTALL)


def jemalloc_here() -> str | None:
    """Path of the allocator that Ray brings along; None: there is none, or something else is loaded before programs."""
    ray = find_spec("ray")
    if ray is None or ray.origin is None:
        return None
    path = Path(ray.origin).parent / "core" / "libjemalloc.so"
    return str(path) if path.exists() and os.environ.get("LD_PRELOAD", str(path)) == str(path) else None


def keeping_memory(jemalloc: str | None) -> Mapping[str, str]:
    """The environment of a process that computes.

    Args:
        jemalloc: its path, where the process has it; None: glibc is to do.
    """
    return KEEP_MEMORY if jemalloc is None else {"LD_PRELOAD": jemalloc, "MALLOC_CONF": JEMALLOC_KEEPS}


class PeakMemory:
    """The largest so far, on a CPU.

    A worker maps Ray's object store, and every page of it that it has ever read or written counts as resident in each
    of the processes that did: hundreds of MB that nobody pays for twice. Linux tells such pages apart.
    """

    def __init__(self) -> None:
        self._looked_s = float("-inf")
        self._status = STATUS.open("rb", buffering=0) if STATUS.exists() else None
        # A peak that is over counts less with every shared page that comes after it.
        self._largest_bytes = self._look()

    def so_far(self) -> int:
        """Bytes; where the system does not tell shared pages apart, with them."""
        now_s = time.monotonic()
        if now_s - self._looked_s > EVERY_S:
            self._looked_s = now_s
            self._largest_bytes = max(self._largest_bytes, self._look())
        return self._largest_bytes

    def _look(self) -> int:
        sizes = None
        if self._status is not None:
            self._status.seek(0)
            sizes = _SIZES.search(self._status.read(8192))
        if sizes is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        largest_kb, shared_kb = map(int, sizes.groups())
        return 1024 * (largest_kb - shared_kb)
