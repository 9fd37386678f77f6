"""The allocator of processes that compute on a CPU.

glibc hands a step's large tensors back to the kernel and faults every page in again at the next step, the more so in
threads other than the first: a tenth of a ResNet-20's time. Told to keep them, it asks for some bytes more than a
tensor has, to align it, and so it often cannot use a hole again that a tensor of the same size has left: the heap goes
on growing for a dozen steps, by up to a third. jemalloc, which Ray brings along on Linux, does neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

GLIBC_KEEPS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""Settings of glibc: it keeps what is freed, in one heap."""

JEMALLOC_KEEPS = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:1"
"""The same of jemalloc."""


def jemalloc_here() -> str | None:
    """Path of the allocator that Ray brings along; None: there is none, or something else is loaded before programs."""
    ray = find_spec("ray")
    if ray is None or ray.origin is None:
        return None
    path = Path(ray.origin).parent / "core" / "libjemalloc.so"
    return str(path) if path.exists() and os.environ.get("LD_PRELOAD") in (None, "", str(path)) else None


def keeping_memory(jemalloc: str | None) -> Mapping[str, str]:
    """The environment of a process that computes.

    Args:
        jemalloc: its path, where the process has it; None: glibc is to do. It does so, too, if there is no such file.
    """
    return GLIBC_KEEPS if jemalloc is None else {**GLIBC_KEEPS, "LD_PRELOAD": jemalloc, "MALLOC_CONF": JEMALLOC_KEEPS}


@contextmanager
def children_keep_memory() -> Iterator[None]:
    """For processes that begin meanwhile, which compute as workers on a CPU do."""
    values = keeping_memory(jemalloc_here())
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
