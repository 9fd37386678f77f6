"""Processes that try something out for a plan, and what is said of one that is ended from outside."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from distblock.errors import RunFailedError


@contextmanager
def ended_is_told(what: str) -> Iterator[None]:
    """Around what waits for them.

    Args:
        what: they did.

    Raises:
        RunFailedError: one of them did not start, or was ended.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise RunFailedError(
            f"plan: a process that {what} did not start or was ended by the system; if the machine is out of memory,"
            " take smaller microbatches (--data.microbatch-size); a script of your own needs"
            " `if __name__ == '__main__':` around what it does"
        ) from error
