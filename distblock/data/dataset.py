"""A data set as a run sees it: three parts, and microbatches by their place in the stream.

Any process can open the same data set and ask for any microbatch in any order: what is in it follows from the
settings, the seed and the place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distblock.config import DataConfig
from distblock.data.images import read_image, scaled
from distblock.data.sources import Source
from distblock.data.split import generator, windowed_order
from distblock.messages import Item, Part

KEPT_ORDERS = 15
"""Orders of earlier epochs that are kept."""


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What is known of a data set once it is open.

    Attributes:
        channels: 1 or 3 (or what the user's tensors have).
        image_size: side of the images.
        class_names: a name for each class.
        mean, std: of each channel, of training images scaled to 0..1.
        num_train, num_validation, num_test: samples of each part.
    """

    channels: int
    image_size: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_validation: int
    num_test: int

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataInfo:
        """From what ``dataclasses.asdict`` and JSON made of it."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Portion:
    """A part: some samples of a source."""

    source: Source
    indices: np.ndarray


class DataSet:
    """An open data set.

    Args:
        config: its settings.
        seed: the run's.
        info: what is known of it.
        portions: its parts.
    """

    def __init__(self, config: DataConfig, *, seed: int, info: DataInfo, portions: Mapping[Part, Portion]) -> None:
        self.info = info
        self._config = config
        self._seed = seed
        self._portions = portions
        self._augment = _augmentation(config, info, seed) if config.augment else None
        self._mean = torch.tensor(info.mean)[:, None, None]
        self._std = torch.tensor(info.std)[:, None, None]
        self._orders: dict[int, np.ndarray] = {}
        self._decoded: dict[int, _Decoded] = {}

    def microbatch(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The samples of one item of the stream.

        Returns:
            Images, float32, ``(N, C, H, W)``, normalized, augmented in training; and labels, int64, ``(N,)``.

        Raises:
            DataError: a sample cannot be read; the message names it.
        """
        portion = self._portions[item.part]
        indices = self._indices(item)
        images = self._images(portion.source, indices)
        if item.purpose == "train" and self._augment is not None:
            pairs = zip(images, indices.tolist(), strict=True)
            images = torch.stack([self._augment(image, item.epoch, index) for image, index in pairs])
        return images.sub_(self._mean).div_(self._std).numpy(), portion.source.labels[indices]

    def positions(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """Where the samples of one item lie in their part's own order, without reading them.

        Returns:
            Positions, int64, ``(N,)``; and labels, int64, ``(N,)``.
        """
        portion, indices = self._portions[item.part], self._indices(item)
        return np.searchsorted(portion.indices, indices), portion.source.labels[indices]

    def samples(self, item: Item) -> np.ndarray:
        """Which samples of its source an item has, int32 ``(N,)``: what tells them apart in every epoch."""
        return self._indices(item).astype(np.int32)

    def _indices(self, item: Item) -> np.ndarray:
        order = self._training_order(item.epoch) if item.purpose == "train" else self._portions[item.part].indices
        return order[item.first_sample : item.first_sample + item.num_samples]

    def _training_order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            portion = self._portions["train"]
            bounds = np.cumsum(portion.source.groups)[:-1]
            groups = np.split(portion.indices, np.searchsorted(portion.indices, bounds))
            order = windowed_order(
                [group for group in groups if len(group)],
                portion.source.window,
                generator(self._seed, "order", epoch),
            )
            # Stages in different laps ask for different epochs in turn.
            self._orders = {**dict(list(self._orders.items())[-KEPT_ORDERS:]), epoch: order}
        return self._orders[epoch]

    def _images(self, source: Source, indices: np.ndarray) -> Tensor:
        """Floating images scaled to 0..1, ``(N, C, H, W)``; new memory."""
        decoded = self._decoded.setdefault(id(source), _Decoded(source, self.info, self._config))
        return decoded.take(indices)


class _Decoded:
    """Images of a source, decoded; kept where all of them fit into memory, so that later epochs do not decode again."""

    def __init__(self, source: Source, info: DataInfo, config: DataConfig) -> None:
        self._source = source
        self._info = info
        self._resize = config.image_size
        num_samples = len(source.labels)
        bytes_needed = num_samples * info.channels * info.image_size**2
        self._keeps = bytes_needed <= config.memory_bytes and len(source.groups) <= source.window
        self._row = np.full(num_samples, -1, dtype=np.int64) if self._keeps else None
        self._kept: Tensor | None = None
        self._num_kept = 0

    def take(self, indices: np.ndarray) -> Tensor:
        """Images by index, floating, scaled to 0..1."""
        if self._row is None:
            return scaled(torch.stack([self._read(index) for index in indices.tolist()]))
        missing = indices[self._row[indices] < 0]
        if len(missing):
            self._keep(np.unique(missing), self._row)
        assert self._kept is not None
        return scaled(self._kept[torch.from_numpy(self._row[indices])])

    def _keep(self, indices: np.ndarray, row: np.ndarray) -> None:
        images = torch.stack([self._read(index) for index in indices.tolist()])
        if self._kept is None:
            self._kept = torch.empty((len(row), *images.shape[1:]), dtype=images.dtype)
        self._kept[self._num_kept : self._num_kept + len(indices)] = images
        row[indices] = np.arange(self._num_kept, self._num_kept + len(indices))
        self._num_kept += len(indices)

    def _read(self, index: int) -> Tensor:
        return read_image(
            self._source, index, channels=self._info.channels, image_size=self._info.image_size, resize=self._resize
        )


def _augmentation(config: DataConfig, info: DataInfo, seed: int) -> Callable[[Tensor, int, int], Tensor]:
    """A function of an image, the epoch and the sample's index."""
    from distblock.data.augment import augment, build_augmentation  # torchvision takes seconds to import

    transform = build_augmentation(config.augment, image_size=info.image_size, mean=info.mean)
    return lambda image, epoch, index: augment(image, transform, seed=seed, epoch=epoch, index=index)
