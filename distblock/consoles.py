"""Where people read: tables on stdout, progress on stderr; and whoever stops reading stops nothing."""

from __future__ import annotations

import sys

from rich.console import Console


class Patient(Console):
    """Goes on without a reader: what is computed is worth more than who watches."""

    def on_broken_pipe(self) -> None:
        """Nobody reads any more; rich would end the process."""
        self.quiet = True


def for_tables(width: int = 120) -> Console:
    """On stdout.

    Args:
        width: columns where it is no terminal: a log file has no width of its own.
    """
    return Patient(width=None if sys.stdout.isatty() else width)


def for_progress() -> Console:
    """On stderr."""
    return Patient(stderr=True)
