"""Which classes a run tells apart, and how many samples it learns each from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from distblock.config import DataConfig
from distblock.data.collections import Sources
from distblock.data.sources import Source
from distblock.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ChosenSource:
    """Some samples of a source, under other labels.

    Attributes:
        source: all of them.
        indices: of those that are there, ascending.
        labels: theirs, int64, ``(N,)``.
        class_names: what labels mean.
    """

    source: Source
    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def groups(self) -> Sequence[int]:
        """What is left of each group."""
        bounds = np.searchsorted(self.indices, np.cumsum([0, *self.source.groups]))
        return np.diff(bounds).tolist()

    @property
    def window(self) -> int:
        """As of all."""
        return self.source.window

    def image(self, index: int) -> Image.Image | Tensor:
        """One image."""
        return self.source.image(int(self.indices[index]))

    def where(self, index: int) -> str:
        """As the source says it."""
        return self.source.where(int(self.indices[index]))


def choose_classes(sources: Sources, config: DataConfig, names: tuple[str, ...]) -> tuple[Sources, tuple[str, ...]]:
    """Leave out what is not asked for.

    Args:
        sources: with labels that are places in ``names``.
        config: ``classes`` and ``absent_classes``.
        names: of the data's classes.

    Returns:
        The sources, and the names that their labels are places in: absent classes first.

    Raises:
        DataError: there is no such class, or an absent one is there.
    """
    check_names(config.classes, names, key="data.classes")
    kept = config.classes or names
    if there := [name for name in config.absent_classes if name in kept]:
        raise DataError(f"data.absent_classes: expected classes that the data do not have, got {there[0]}; drop it")
    if not (config.classes or config.absent_classes):
        return sources, names
    told_apart = (*config.absent_classes, *kept)
    place = np.array([told_apart.index(name) if name in kept else -1 for name in names], dtype=np.int64)
    chosen: Sources = {part: _chosen(source, place, told_apart) for part, source in sources.items()}
    return chosen, told_apart


def few(labels: np.ndarray, config: DataConfig, names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Training samples that are kept.

    Args:
        labels: of all training samples, int64, ``(N,)``.
        config: ``train_classes`` and ``per_class``.
        names: that labels are places in.
        rng: draws them.

    Returns:
        Positions, ascending.

    Raises:
        DataError: there is no such class.
    """
    check_names(config.train_classes, names, key="data.train_classes")
    wanted = [names.index(name) for name in config.train_classes] or list(range(len(names)))
    found = [rng.permutation(np.flatnonzero(labels == label))[: config.per_class] for label in wanted]
    return np.sort(np.concatenate(found)).astype(np.int64)


def check_names(wanted: Sequence[str], names: Sequence[str], *, key: str) -> None:
    """Whether there are such classes.

    Raises:
        DataError: one is not.
    """
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(f"{key}: expected some of {', '.join(names)}, got {unknown[0]}")


def _chosen(source: Source, place: np.ndarray, names: tuple[str, ...]) -> ChosenSource:
    labels = place[source.labels]
    indices = np.flatnonzero(labels >= 0)
    return ChosenSource(source=source, indices=indices, labels=labels[indices], class_names=names)
