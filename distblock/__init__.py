"""Train residual networks block by block, each block on its own worker, by its own local loss."""

from distblock.config import Config
from distblock.errors import DataError, DistblockError, InputError, StageError, WorkerLostError
from distblock.trainer import BlockTrainer

__all__ = ["BlockTrainer", "Config", "DataError", "DistblockError", "InputError", "StageError", "WorkerLostError"]
