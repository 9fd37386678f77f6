"""Train residual networks block by block, each block on its own worker, by its own local loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distblock.config import Config
from distblock.errors import DataError, DistblockError, InputError, StageError, WorkerLostError
from distblock.version import __version__

if TYPE_CHECKING:
    from distblock.trainer import BlockTrainer

__all__ = [
    "BlockTrainer",
    "Config",
    "DataError",
    "DistblockError",
    "InputError",
    "StageError",
    "WorkerLostError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """The trainer brings Ray Train and its needs along, which take seconds to import; workers do without them."""
    if name == "BlockTrainer":
        from distblock.trainer import BlockTrainer

        return BlockTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
