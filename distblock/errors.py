"""What can go wrong, by who can mend it.

An error that a user can cause says what was expected, what came and what to do, in one line, and the command line
ends with status 2. An error of a running stage names the stage, the microbatch and the cause, and survives the way
from a worker to the driver: exceptions are pickled by their ``args``, so every constructor takes only positional text
and numbers and hands them on.
"""

from __future__ import annotations


class DistblockError(Exception):
    """Anything this package raises on purpose."""


class InputError(DistblockError, ValueError):
    """Something that was given cannot be used; the message says what would do. Exit status 2."""


class DataError(InputError):
    """A data set, a file or a sample cannot be used; the message names it. Exit status 2."""


class StageError(DistblockError, RuntimeError):
    """A stage failed while it worked on a microbatch. Exit status 1.

    Args:
        stage: index of the stage.
        microbatch: the microbatch in words, e.g. ``"epoch 3, training microbatch 17"``.
        cause: what happened, with the class of the exception where there was one.
    """

    def __init__(self, stage: int, microbatch: str, cause: str) -> None:
        super().__init__(stage, microbatch, cause)
        self.stage = stage
        self.microbatch = microbatch
        self.cause = cause

    def __str__(self) -> str:
        return f"stage {self.stage}, {self.microbatch}: {self.cause}"


class DeviceLostError(StageError):
    """A stage's device failed, not its code: another process, or another device, may go on. Exit status 1."""


class PeerLostError(StageError):
    """Another replica of the stage is gone; the stage's group may start again. Exit status 1."""


class InputLostError(StageError):
    """What a stage was to work on is gone with the node that held it. Exit status 1."""


class AttemptLostError(DistblockError, RuntimeError):
    """The run cannot go on from where it is, but from its last checkpoint. Exit status 1.

    Args:
        kind: what happened, as a `distblock.messages.FailureKind`.
        who: to whom.
        cause: what was seen of it.
    """

    def __init__(self, kind: str, who: str, cause: str) -> None:
        super().__init__(kind, who, cause)
        self.kind = kind
        self.who = who
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.who}: {self.cause}"


class PreemptedError(DistblockError, RuntimeError):
    """The run was told to end (SIGTERM); the message says what it can go on from. Exit status 143."""


class StorageError(DistblockError, RuntimeError):
    """Results could not be written; the message names what is not saved, and why. Exit status 1."""


class WorkerLostError(DistblockError, RuntimeError):
    """A worker's process ended; the message names its stages. Exit status 1."""


class RunFailedError(DistblockError, RuntimeError):
    """One of several runs failed; the message names it and its log. Exit status 1."""
