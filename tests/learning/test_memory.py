"""A process's own memory grows with what it allocates, and not with what it shares."""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distblock.learning import memory
from distblock.learning.memory import PeakMemory

SIZE = 32 * 2**20

pytestmark = pytest.mark.skipif(not memory.STATUS.exists(), reason="this system does not tell shared memory apart")


def grown_bytes(what: str) -> int:
    """In a process that has had no larger peak before."""
    script = f"from test_memory import *\nprint({what}())"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, check=True)
    return int(done.stdout)


def allocate() -> int:
    peak = PeakMemory()
    before = PeakMemory().so_far()
    np.ones(SIZE, dtype=np.uint8)
    return peak.so_far() - before


def share() -> int:
    peak = PeakMemory()
    before = PeakMemory().so_far()
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(SIZE)
        with mmap.mmap(file.fileno(), SIZE) as pages:
            np.frombuffer(pages, dtype=np.uint8)[:].fill(1)
            return peak.so_far() - before


def test_what_was_allocated_counts_though_it_is_gone():
    assert grown_bytes("allocate") > 0.9 * SIZE


def test_what_is_shared_does_not_count():
    assert abs(grown_bytes("share")) < 0.1 * SIZE


def test_it_looks_now_and_then(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, memory.EVERY_S / 2, 2 * memory.EVERY_S])
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    looks = iter([50, 100, 300])
    monkeypatch.setattr(PeakMemory, "_look", lambda self: next(looks))
    peak = PeakMemory()
    assert [peak.so_far(), peak.so_far(), peak.so_far()] == [100, 100, 300]


def test_a_system_that_tells_less_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t10 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert PeakMemory().so_far() > 2**20
