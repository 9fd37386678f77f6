"""Inputs that a stage may train on again while no fresh one has come.

A stage behind a slow one would stand idle most of the time. Here it keeps its last inputs and goes on with these; an
input may be used again only so often, since a stage that sees nothing else learns it by heart.

Source: Belilovsky et al. 2020, arXiv:1901.08164, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Generic, Literal, TypeVar

Entry = TypeVar("Entry")
Order = Literal["newest", "oldest", "random"]


@dataclass(slots=True)
class _Kept(Generic[Entry]):
    entry: Entry
    reuses: int = 0


class ReuseBuffer(Generic[Entry]):
    """The last inputs.

    Args:
        size: the most that are kept; the oldest goes first.
        order: which is drawn: the newest or oldest of those least used, or any.
        max_reuses: how often one may be drawn; it goes after the last time.
        seed: of the draw at random.
    """

    def __init__(self, *, size: int, order: Order, max_reuses: int, seed: int) -> None:
        self._size = size
        self._order: Order = order
        self._max_reuses = max_reuses
        self._random = Random(seed)
        self._kept: list[_Kept[Entry]] = []

    def add(self, entry: Entry) -> None:
        """A fresh input has been used once."""
        self._kept = [*self._kept, _Kept(entry)][-self._size :]

    def draw(self) -> Entry | None:
        """One to use again; None if there is none left."""
        if not self._kept:
            return None
        if self._order == "random":
            kept = self._random.choice(self._kept)
        else:
            least = min(each.reuses for each in self._kept)
            candidates = [each for each in self._kept if each.reuses == least]
            kept = candidates[-1 if self._order == "newest" else 0]
        kept.reuses += 1
        if kept.reuses >= self._max_reuses:
            self._kept.remove(kept)
        return kept.entry
