"""What this process takes of the machine's memory, without what it only shares with others."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

STATUS = Path("/proc/self/status")

EVERY_S = 0.05
"""Between two looks at it, which take some 15 us; the largest mark waits for the next one."""

_SIZES = re.compile(rb"VmHWM:\s+(\d+) kB.*RssShmem:\s+(\d+) kB", re.DOTALL)


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
