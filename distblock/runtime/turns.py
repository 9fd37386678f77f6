"""Threads that fetch in any order and compute in stream order.

A worker's calls run in threads of their own, so that one fetches while another's microbatch computes. What keeps the
order is not the thread that happens to wake first, but the microbatch's number.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets callers through one by one, by number.

    Args:
        first: the first number.
    """

    def __init__(self, first: int = 0) -> None:
        self._next = first
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for the numbers before this one; the next may go when the block ends.

        Raises:
            BaseException: what `fail` was given: an earlier number will never come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._next == number or self._failure is not None)
            if self._failure is not None:
                raise self._failure
        yield
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """No number after this failure gets its turn; the first failure is the one they see."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()
