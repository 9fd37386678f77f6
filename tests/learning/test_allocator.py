"""Processes that compute take the allocator that keeps memory, unless somebody has chosen another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distblock.learning.allocator import children_keep_memory, jemalloc_here


def test_a_process_that_begins_meanwhile_takes_jemalloc():
    path = jemalloc_here()
    if path is None:
        pytest.skip("Ray brings no jemalloc along here, or LD_PRELOAD is set")
    show = [sys.executable, "-c", "print(open('/proc/self/maps').read())"]
    before = dict(os.environ)
    with children_keep_memory():
        meanwhile = subprocess.run(show, capture_output=True, check=True, text=True).stdout
    afterwards = subprocess.run(show, capture_output=True, check=True, text=True).stdout
    loaded = str(Path(path).resolve())
    assert loaded in meanwhile
    assert loaded not in afterwards
    assert dict(os.environ) == before


def test_whoever_loads_something_else_first_keeps_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so")
    assert jemalloc_here() is None
    with children_keep_memory():
        assert os.environ["LD_PRELOAD"] == "/usr/lib/libtcmalloc.so"
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
