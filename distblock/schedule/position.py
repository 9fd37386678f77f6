"""How far a run has come, and how a stream goes on from there.

A checkpoint is of use only if every stage's state belongs to the same point. So a position names, for each stream
under way, how many of its microbatches the stages' states hold; the rest of a run is what comes after it. It fits into
a few lines of JSON, since a stream is a function of the settings: what has passed is drawn again and skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distblock.messages import Item
from distblock.schedule.laps import Cell


class TimeUp:
    """Whether time is up. A resumed run must get the answers that it got: its stream depends on them.

    Args:
        ask: whether it is up now.
        first_yes: number of the question that was the first to be answered yes; None: there was none.
        answered: questions are answered no until `live` is called.
    """

    def __init__(self, ask: Callable[[], bool], *, first_yes: int | None = None, answered: bool = False) -> None:
        self._ask = ask
        self._answered = answered
        self._count = 0
        self.first_yes = first_yes

    def __call__(self) -> bool:
        """Ask."""
        number, self._count = self._count, self._count + 1
        if self.first_yes is not None:
            return number >= self.first_yes
        if not self._answered and self._ask():
            self.first_yes = number
        return self.first_yes is not None

    def live(self) -> None:
        """What was asked before has been asked again."""
        self._answered = False


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far one stream has come.

    Attributes:
        items: microbatches that have passed.
        first_yes: see `TimeUp`.
    """

    items: int
    first_yes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run has come.

    Attributes:
        running: each stream under way, by its cell; None: the one through all stages.
        done: cells whose streams have ended.
    """

    running: Mapping[Cell | None, Reached] = field(default_factory=dict)
    done: tuple[Cell, ...] = ()

    def includes(self, item: Item) -> bool:
        """Whether a microbatch of a stream that was under way has passed."""
        cell = None if item.stage is None else Cell(lap=item.lap, stage=item.stage)
        return cell in self.running and item.number < self.running[cell].items

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists."""
        running = [
            {"cell": cell and [cell.lap, cell.stage], "items": reached.items, "first_yes": reached.first_yes}
            for cell, reached in self.running.items()
        ]
        return {"running": running, "done": [[cell.lap, cell.stage] for cell in self.done]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Position:
        """Back from there."""

        def cell(numbers: list[int]) -> Cell:
            return Cell(lap=numbers[0], stage=numbers[1])

        running = {
            entry["cell"] and cell(entry["cell"]): Reached(items=entry["items"], first_yes=entry["first_yes"])
            for entry in content["running"]
        }
        return cls(running=running, done=tuple(cell(numbers) for numbers in content["done"]))


def rest(items: Iterator[Item | None], reached: Reached, time_up: TimeUp) -> Iterator[Item | None]:
    """A stream from where it had come to; what passed is drawn again, so that numbers and epochs go on.

    Args:
        items: the stream from its beginning.
        reached: how far it had come.
        time_up: what the stream asks.
    """
    for _ in range(reached.items):
        assert next(items) is not None, "what the stream waits for was known when it came so far"
    time_up.live()
    yield from items
