"""Caches that lie with another worker: mapped where they lie on this node, else carried over once.

The bytes cross through the object store in pieces, so that neither side holds a whole file in memory.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from distblock.messages import Item
from distblock.scratch.features import FeatureCache, file_name

PIECE_BYTES = 16 * 1024**2
"""Bytes that are carried at once."""


@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """Where the outputs of a stage lie.

    Attributes:
        node: address of the host.
        folder: the folder there.
        worker: handle of the worker that wrote them.
    """

    node: str
    folder: str
    worker: Any


class CacheReader:
    """Opens what other workers have stored.

    Attributes:
        opened: names of the files that have been opened.

    Args:
        cache: this worker's own; what is carried over goes there.
        node: address of this worker's host.
    """

    def __init__(self, cache: FeatureCache, *, node: str) -> None:
        self._cache = cache
        self._node = node
        self.opened: set[str] = set()
        self._lock = threading.Lock()

    def open(self, source: CacheSource, item: Item) -> tuple[Path, bool]:
        """The file with a microbatch's samples, and whether this is its first opening here."""
        assert item.stage is not None
        name = file_name(item.stage - 1, item.lap, item.part)
        path = Path(source.folder) / name
        with self._lock:
            is_new = name not in self.opened
            if source.node != self._node:
                path = self._cache.folder / name
                if is_new or not path.exists():
                    self._carry(source, name, path)
            self.opened.add(name)
        return path, is_new

    def _carry(self, source: CacheSource, name: str, path: Path) -> None:
        start = 0
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            while True:
                piece: np.ndarray = ray.get(source.worker.read_cache.remote(name, start, start + PIECE_BYTES))
                if not len(piece):
                    break
                file.write(piece.tobytes())
                start += len(piece)
        partial.rename(path)
