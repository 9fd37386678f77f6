"""How a command's process ends: by itself, by an error, by a signal, or since nobody reads what it prints.

Exit status: 0 done, 1 the run failed, 2 something that was given cannot be used, 130 interrupted, 141 nobody reads
what is printed, 143 told to end; of a job that is followed, the job's.
"""

from __future__ import annotations

import atexit
import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from distblock.errors import DistblockError, InputError, PreemptedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: int | None = None
"""The signal that ends the command."""


def until_its_end(command: Callable[[], int]) -> int:
    """Run it, let signals end it, and say in one line why it failed.

    Args:
        command: gives its exit status.

    Returns:
        The exit status.
    """
    # A descriptor that was closed would be given to the next file; and what has no stdout cannot print.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    global _received
    _received = None
    for number in SIGNALS:
        signal.signal(number, _unwind)
    # At its end Python would look for garbage among all that torch brought along: half a second.
    atexit.register(gc.freeze)
    # And it would hand signals back to the system, which has its own exit status for one that comes now.
    atexit.register(_ignore_signals)
    status = _told(command)
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in unread:
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + signal.SIGPIPE if sys.stdout in unread and not status else status


def _told(command: Callable[[], int]) -> int:
    try:
        return command()
    except InputError as error:
        return _fail(error, 2)
    except PreemptedError as error:
        return _fail(error, 128 + signal.SIGTERM)
    except DistblockError as error:
        return _fail(error, 1)
    except (KeyboardInterrupt, SystemExit) as error:
        # Whichever of them: Ray's own code raises others in the place of those that it is crossed by.
        if _received == signal.SIGTERM:
            return _fail("told to end", 128 + signal.SIGTERM)
        if _received == signal.SIGINT or isinstance(error, KeyboardInterrupt):
            return _fail("interrupted", 128 + signal.SIGINT)
        # Some library's, once it has said what it had to say.
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        return 0


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _fail(why: object, status: int) -> int:
    with suppress(BrokenPipeError):
        print(f"distblock: {' '.join(str(why).split())}", file=sys.stderr)
    return status


def _is_unread(stream: TextIO) -> bool:
    """Whether nobody reads what is written there, such as behind ``head``."""
    try:
        stream.flush()
        descriptor = stream.fileno()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _unwind(number: int, _frame: FrameType | None) -> None:
    """Ctrl-C, or SIGTERM, ends the command and cleans up; after it, either ends the process at once, and all that it
    started."""
    global _received
    _received = number
    # Looked up now: once their parents have ended, an embedded Ray's processes are nobody's children any more.
    started = psutil.Process().children(recursive=True)

    def end_at_once(number: int, _frame: FrameType | None) -> None:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                # It ends by itself once nobody is left, and takes the semaphores of all with it.
                if not any("resource_tracker" in word for word in process.cmdline()):
                    process.kill()
        os._exit(128 + number)

    for each in SIGNALS:
        signal.signal(each, end_at_once)
    # Neither is an error that somebody deals with.
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
