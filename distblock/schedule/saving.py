"""What an executor and whoever keeps checkpoints say to each other.

The executor knows where the run stands and how to get at the stages' states; it knows no files. Whoever keeps
checkpoints knows files, and neither workers nor references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distblock.schedule.position import Position

Arrays = Mapping[str, Any]
"""NumPy arrays by name."""


@dataclass(frozen=True, kw_only=True)
class CacheFiles:
    """Cached outputs on disk.

    Attributes:
        folder: name of the folder that holds them on every node.
        sha256: of each file, by its name.
        opened: names of those whose crossing has been counted.
    """

    folder: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    opened: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Held:
    """One worker's part of a checkpoint.

    Attributes:
        fetch: gives each stage's training state in turn, by the stage's index.
        caches: what it has stored, and opened.
        cost_s: seconds in which it could not compute.
    """

    fetch: Callable[[], Iterator[tuple[int, Arrays]]]
    caches: CacheFiles
    cost_s: float


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a run goes on from.

    Attributes:
        states: training state of each stage; empty: a run from its beginning.
        caches: what was on disk.
    """

    states: Mapping[int, Arrays] = field(default_factory=dict)
    caches: CacheFiles = field(default_factory=CacheFiles)


class Saver(Protocol):
    """Keeps checkpoints."""

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is to be taken now."""
        ...

    def count(self, microbatches: int) -> None:
        """So many more have passed through all stages."""
        ...

    def begin(self, position: Position) -> None:
        """A checkpoint at this position is on its way: what is recorded of microbatches within it belongs to it."""
        ...

    def finish(self, held: Sequence[Held]) -> None:
        """All that belongs to it is there.

        Raises:
            PreemptedError: it was the last one that was waited for.
        """
        ...

    def check_preempted(self) -> None:
        """Whether the run has to end.

        Raises:
            PreemptedError: the time to write one more checkpoint is over.
        """
        ...


class NoSaver:
    """A `Saver` that keeps nothing."""

    is_due = False

    def count(self, microbatches: int) -> None:
        """Nothing is due."""

    def begin(self, position: Position) -> None:
        """Never called."""

    def finish(self, held: Sequence[Held]) -> None:
        """Never called."""

    def check_preempted(self) -> None:
        """Nothing to see."""
