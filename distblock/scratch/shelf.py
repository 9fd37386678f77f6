"""Stages that are not needed now, on disk: a small machine then holds one stage at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class DiskShelf:
    """A safetensors file a stage.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, stage: int, state: Mapping[str, Tensor]) -> None:
        """Keep a stage's training state, in place of what was kept before."""
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        save_file(tensors, str(self._path(stage)))

    def get(self, stage: int) -> Mapping[str, Tensor]:
        """What was put last."""
        return load_file(str(self._path(stage)))

    def _path(self, stage: int) -> Path:
        return self._folder / f"stage-{stage:03d}.safetensors"
