"""When a checkpoint is due. Time is an argument.

Rarely costs work after a failure, often costs time without one. A fixed interval is right for one network on one
machine; so the interval is tuned by what checkpoints have been found to cost.
"""

from __future__ import annotations

from typing import Literal

SHARE = 0.02
"""Of the time, what checkpoints may cost where the interval tunes itself: below the 3 % that are promised, since what
is measured is not all of it."""

SOONEST_S = 10.0
"""Seconds between two checkpoints at least, where the interval tunes itself."""

LONGEST_S = 600.0
"""And at most: what a checkpoint costs is measured anew from time to time."""

RETRY_S = 5.0
"""Seconds after which one that could not be written is tried again, doubled each time."""


class Pace:
    """Says when.

    Args:
        every_s: seconds between two; None: time does not matter.
        every_microbatches: microbatches of the last worker between two; None: they do not matter.
    """

    def __init__(self, *, every_s: float | Literal["auto"] | None, every_microbatches: int | None) -> None:
        # Whoever counts microbatches means these.
        self._every_s = None if every_microbatches is not None and every_s == "auto" else every_s
        self._every_microbatches = every_microbatches
        self._since_s: float | None = None
        self._microbatches = 0
        self._cost_s = 0.0
        self._failures = 0

    @property
    def interval_s(self) -> float | None:
        """Seconds between two, as it stands; None: time does not matter."""
        if self._every_s is None:
            return None
        tuned_s = min(LONGEST_S, max(SOONEST_S, self._cost_s / SHARE))
        interval_s = self._every_s if isinstance(self._every_s, float) else tuned_s
        return min(interval_s, RETRY_S * 2 ** (self._failures - 1)) if self._failures else interval_s

    def count(self, microbatches: int) -> None:
        """So many more have passed."""
        self._microbatches += microbatches

    def is_due(self, now_s: float) -> bool:
        """Whether one is; time counts from the first question."""
        if self._since_s is None:
            self._since_s = now_s
        if self._every_microbatches is not None and self._microbatches >= self._every_microbatches:
            return True
        interval_s = self.interval_s
        return interval_s is not None and now_s - self._since_s >= interval_s

    def begin(self, now_s: float) -> None:
        """One has been begun."""
        self._since_s, self._microbatches = now_s, 0

    def finish(self, *, cost_s: float, is_written: bool) -> None:
        """It has ended.

        Args:
            cost_s: seconds that it has taken from training.
            is_written: whether it could be written.
        """
        self._cost_s = cost_s
        self._failures = 0 if is_written else self._failures + 1
