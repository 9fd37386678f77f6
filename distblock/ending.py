"""How a command's process ends: by itself, by an error, by a signal, or since nobody reads what it prints.

Exit status: 0 done, 1 the run failed, 2 something that was given cannot be used, 130 interrupted, 141 nobody reads
what is printed, 143 told to end; of a job that is followed, the job's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import psutil

from distblock.errors import DistblockError, InputError, PreemptedError


class _ToldToEnd(SystemExit):
    """SIGTERM, where no run takes it for a word to itself; like KeyboardInterrupt, nothing that code deals with."""


def until_its_end(command: Callable[[], int]) -> int:
    """Run it, let signals end it, and say in one line why it failed.

    Args:
        command: gives its exit status.

    Returns:
        The exit status.
    """
    signal.signal(signal.SIGINT, _unwind)
    signal.signal(signal.SIGTERM, _unwind)
    try:
        status = _told(command)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        return 128 + signal.SIGPIPE
    return status


def _told(command: Callable[[], int]) -> int:
    try:
        return command()
    except InputError as error:
        return _fail(error, 2)
    except PreemptedError as error:
        return _fail(error, 128 + signal.SIGTERM)
    except DistblockError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except _ToldToEnd:
        return _fail("told to end", 128 + signal.SIGTERM)


def _fail(why: object, status: int) -> int:
    print(f"distblock: {' '.join(str(why).split())}", file=sys.stderr)
    return status


def _is_unread() -> bool:
    """Whether nobody reads what is printed, such as behind ``head``; nothing more is, then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _unwind(number: int, _frame: FrameType | None) -> None:
    """Ctrl-C, or SIGTERM, ends the command and cleans up; a second one ends the process at once, and all it started."""
    # Looked up now: once their parents have ended, an embedded Ray's processes are nobody's children any more.
    started = psutil.Process().children(recursive=True)

    def end_at_once(_number: int, _frame: FrameType | None) -> None:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(128 + number)

    signal.signal(number, end_at_once)
    raise KeyboardInterrupt if number == signal.SIGINT else _ToldToEnd
