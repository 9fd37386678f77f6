"""What failures mean: when a silent worker counts as dead, and when a run is not to go on. Time is an argument.

Frozen is not dead, and slow is not frozen. So a worker that has something to do has a deadline for finishing it, which
follows what it has been taking.
"""

from __future__ import annotations

START_S = 180.0
"""Seconds in which a worker has to finish its first call: it may have to load libraries and warm up a device."""

SLACK = 20
"""How many times the longest call so far a call may take."""

AT_ONE_PLACE = 3
"""Deaths of one worker at one and the same call that end the run: another try would end the same way."""


class Deadline:
    """How long one worker may go on without finishing anything.

    Args:
        least_s: no shorter than this.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._longest_s: float | None = None
        self._since_s: float | None = None

    def begin(self, now_s: float) -> None:
        """The worker has been given something to do."""
        if self._since_s is None:
            self._since_s = now_s

    def finish(self, now_s: float, *, is_idle: bool) -> None:
        """It has finished something; whether nothing is left."""
        if self._since_s is not None:
            self._longest_s = max(self._longest_s or 0.0, now_s - self._since_s)
        self._since_s = None if is_idle else now_s

    def restart(self, now_s: float, *, is_idle: bool) -> None:
        """Another process takes its place; whether all that was asked of it is known. It may take long to start."""
        self._since_s = None if is_idle else now_s
        self._longest_s = None

    def silent_s(self, now_s: float) -> float | None:
        """Seconds without a result; None: nothing is asked of it."""
        return None if self._since_s is None else now_s - self._since_s

    def overdue_s(self, now_s: float) -> float | None:
        """Seconds without a result, if they are too many."""
        silent_s = self.silent_s(now_s)
        if silent_s is None:
            return None
        limit_s = max(START_S, self._least_s) if self._longest_s is None else self._least_s
        limit_s = max(limit_s, SLACK * (self._longest_s or 0.0))
        return silent_s if silent_s > limit_s else None


class Failures:
    """Counts them.

    Args:
        most: how many a run survives; -1: any number.
        at_one_place: deaths of one worker at one and the same call that end the run.

    Attributes:
        count: how many there were.
    """

    def __init__(self, most: int, *, at_one_place: int = AT_ONE_PLACE) -> None:
        self._most = most
        self._at_one_place = at_one_place
        self.count = 0
        self._causes: dict[tuple[str, str], list[str]] = {}

    def tell(self, who: str, place: str, cause: str) -> str | None:
        """A worker, or a node, has died or frozen.

        Args:
            who: whose failure it is.
            place: the first thing whose result is missing.
            cause: what was seen of it.

        Returns:
            Why the run must end, or None: it goes on.
        """
        self.count += 1
        causes = self._causes.setdefault((who, place), [])
        causes.append(cause)
        if len(causes) >= self._at_one_place:
            return f"for the {len(causes)}rd time at the same place; the first time: {causes[0]}"
        if self._most >= 0 and self.count > self._most:
            return f"failure {self.count}, and recovery.max_failures is {self._most}"
        return None
