"""What a worker has been given since its last snapshot: enough to bring another one to where it was.

A worker's calls are numbered in the order in which it is given them, and it computes in that order. A snapshot holds
what came before a number; what came after is kept here, and a worker that starts from the snapshot computes it again,
in order. What is known of it already is told apart, so that nothing is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Call = TypeVar("Call")


@dataclass(slots=True)
class Entry(Generic[Call]):
    """One call.

    Attributes:
        turn: its number.
        call: what was asked.
        num_bytes: what keeping its input takes.
        num_microbatches: that it works on.
        is_finished: its result is known.
    """

    turn: int
    call: Call
    num_bytes: int
    num_microbatches: int
    is_finished: bool = False


class Ledger(Generic[Call]):
    """The calls of one worker that its last snapshot does not hold."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry[Call]] = {}
        self._unfinished: dict[int, Entry[Call]] = {}
        self.next_turn = 0
        self.kept_bytes = 0
        self.kept_microbatches = 0

    @property
    def entries(self) -> list[Entry[Call]]:
        """In order."""
        return list(self._entries.values())

    @property
    def unfinished(self) -> list[Entry[Call]]:
        """Those whose result is not known, in order."""
        return list(self._unfinished.values())

    @property
    def oldest_unfinished(self) -> Entry[Call] | None:
        """The first of them."""
        return next(iter(self._unfinished.values()), None)

    def begin(self, call: Call, num_bytes: int, num_microbatches: int) -> int:
        """Note a call; its number."""
        turn = self.next_turn
        self._entries[turn] = self._unfinished[turn] = Entry(turn, call, num_bytes, num_microbatches)
        self.next_turn += 1
        self.kept_bytes += num_bytes
        self.kept_microbatches += num_microbatches
        return turn

    def finish(self, turn: int) -> bool:
        """The result of a call is known; whether it was not before."""
        entry = self._unfinished.pop(turn, None)
        if entry is None:
            return False
        entry.is_finished = True
        return True

    def cover(self, turn: int) -> None:
        """A snapshot holds all that came before a number; the results of all that are known."""
        for covered in [number for number in self._entries if number < turn]:
            self.forget(covered)

    def forget(self, turn: int) -> None:
        """A call need not be computed again."""
        entry = self._entries.pop(turn)
        self.kept_bytes -= entry.num_bytes
        self.kept_microbatches -= entry.num_microbatches
