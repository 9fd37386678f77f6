"""A data set as a run sees it: three parts, and microbatches by their place in the stream.

Any process can open the same data set and ask for any microbatch in any order: what is in it follows from the
settings, the seed and the place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distblock.config import DataConfig
from distblock.data.classes import choose_classes, few
from distblock.data.collections import Sources, open_sources
from distblock.data.sources import Source
from distblock.data.split import generator, stratified, windowed_order
from distblock.errors import DataError
from distblock.messages import Item, Part

TEST_SHARE = 0.2
"""Share split off for test where the set has no test part of its own."""

STATISTICS_SAMPLES = 2000
"""Training samples, evenly spaced, that mean and deviation are taken over."""

TRIAL_SAMPLES = 500
"""Samples, evenly spaced, of each other part that are decoded as a trial before anything starts."""


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


class Images(Protocol):
    """What images are read from."""

    def image(self, index: int) -> Image.Image | Tensor:
        """One of them."""
        ...

    def where(self, index: int) -> str:
        """How to name it in an error."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Portion:
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

    def __init__(self, config: DataConfig, *, seed: int, info: DataInfo, portions: Mapping[Part, _Portion]) -> None:
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


def read_image(
    source: Images,
    index: int,
    *,
    channels: int,
    image_size: int,
    resize: int | None,
    advice: str = "set --data.image-size to resize all images",
) -> Tensor:
    """One image as ``(C, H, W)``; ``advice`` is for whoever has given one of another size.

    Raises:
        DataError: it does not decode, or has another size or other channels; the message names it.
    """
    image = _to_tensor(source.image(index), channels)
    if resize is not None and tuple(image.shape[1:]) != (resize, resize):
        image = _resized(image, resize)
    if tuple(image.shape) != (channels, image_size, image_size):
        raise DataError(
            f"{source.where(index)}: expected an image of {channels} x {image_size} x {image_size} (channels, height,"
            f" width), got {' x '.join(str(side) for side in image.shape)}; {advice}"
        )
    return image


def open_data(
    config: DataConfig, *, seed: int, dataset: Callable[..., Any] | None = None, info: DataInfo | None = None
) -> DataSet:
    """Open a data set and check what can be checked without reading all of it.

    Args:
        config: which, and how it is divided.
        seed: the run's.
        dataset: the user's own, instead of ``config.name``: a function of a part (``train``, ``validation``, ``test``;
            None where there is none), or of nothing, that returns a map-style ``torch.utils.data.Dataset``.
        info: known from an earlier opening; then nothing is decoded here.

    Raises:
        DataError: it cannot be used; one line names the file, the row and what was expected.
    """
    sources, class_names = open_classes(config, dataset)
    if len(alone := np.unique(sources["train"].labels)) == 1 and not config.absent_classes:
        raise DataError(f"data: expected two classes or more, got label {alone[0]} for every training sample")
    if not config.train_classes:
        for part, source in sources.items():
            _check_seen(part, source, sources["train"], class_names)
    portions = _divide(config, seed, sources, class_names)
    if info is None:
        info = _describe(config, class_names, portions, whole=_divide_training(sources, config, seed)["train"])
    return DataSet(config, seed=seed, info=info, portions=portions)


def open_classes(config: DataConfig, dataset: Callable[..., Any] | None) -> tuple[Sources, tuple[str, ...]]:
    """The sources of a data set, and what their labels are called; no image is read.

    Raises:
        DataError: as for `open_data`.
    """
    sources = open_sources(config, dataset)
    names = _class_names(sources["train"])
    for source in sources.values():
        _check_labels(source, names)
    return choose_classes(sources, config, names)


def _divide_training(sources: Mapping[Part, Source], config: DataConfig, seed: int) -> dict[Part, np.ndarray]:
    """Indices into the training source of each part taken from it, before ``config.fraction``."""
    train = sources["train"]
    rest = np.arange(len(train.labels))
    taken: dict[Part, np.ndarray] = {}
    shares: tuple[tuple[Part, float], ...] = (("test", TEST_SHARE), ("validation", config.validation))
    for part, share in shares:
        if part not in sources:
            # A class of one sample stays where it can be learned.
            chosen = rest[stratified(train.labels[rest], share, generator(seed, "split", part), leave=1)]
            taken[part] = chosen
            rest = np.setdiff1d(rest, chosen)
    return {**taken, "train": rest}


def _divide(
    config: DataConfig, seed: int, sources: Mapping[Part, Source], class_names: tuple[str, ...]
) -> dict[Part, _Portion]:
    divided = _divide_training(sources, config, seed)
    train = divided["train"]
    if config.fraction < 1:
        train = train[stratified(sources["train"].labels[train], config.fraction, generator(seed, "fraction"))]
    if config.train_classes or config.per_class:
        train = train[few(sources["train"].labels[train], config, class_names, generator(seed, "few"))]
    divided["train"] = train
    portions: dict[Part, _Portion] = {
        part: _Portion(source=sources["train"], indices=indices) for part, indices in divided.items()
    }
    for part, source in sources.items():
        if part != "train":
            portions[part] = _Portion(source=source, indices=np.arange(len(source.labels)))
    for part, portion in portions.items():
        if not len(portion.indices):
            raise DataError(f"data: expected samples in the {part} part, got none")
    return portions


def _describe(
    config: DataConfig, class_names: tuple[str, ...], portions: Mapping[Part, _Portion], *, whole: np.ndarray
) -> DataInfo:
    source = portions["train"].source
    first = source.image(int(whole[0]))
    channels = colours(first)
    image_size = config.image_size or int(_to_tensor(first, channels).shape[1])

    def read(source: Source, indices: np.ndarray, most: int) -> list[Tensor]:
        evenly = indices[np.linspace(0, len(indices) - 1, min(len(indices), most)).astype(np.int64)]
        return [
            read_image(source, index, channels=channels, image_size=image_size, resize=config.image_size)
            for index in evenly.tolist()
        ]

    mean, std = _statistics(config, scaled(torch.stack(read(source, whole, STATISTICS_SAMPLES))).double())
    for part in ("validation", "test"):
        read(portions[part].source, portions[part].indices, TRIAL_SAMPLES)
    return DataInfo(
        channels=channels,
        image_size=image_size,
        class_names=class_names,
        mean=mean,
        std=std,
        num_train=len(portions["train"].indices),
        num_validation=len(portions["validation"].indices),
        num_test=len(portions["test"].indices),
    )


def _statistics(config: DataConfig, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel: as they are given, or else of these images."""
    channels = images.shape[1]
    if config.mean is not None and config.std is not None:
        for key, values in (("mean", config.mean), ("std", config.std)):
            if len(values) != channels:
                raise DataError(f"data.{key}: expected a number for each of {channels} channels, got {len(values)}")
        return config.mean, config.std
    std = images.std(dim=(0, 2, 3), correction=0)
    return tuple(images.mean(dim=(0, 2, 3)).tolist()), tuple(
        torch.where(std > 1e-6, std, torch.ones_like(std)).tolist()
    )


def _class_names(train: Source) -> tuple[str, ...]:
    if not len(train.labels):
        raise DataError("data: expected training samples, got none")
    if train.class_names is not None:
        return train.class_names
    return tuple(str(label) for label in range(int(train.labels.max()) + 1))


def _check_labels(source: Source, class_names: tuple[str, ...]) -> None:
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(class_names)))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{source.where(index)}: expected a label from 0 to {len(class_names) - 1}, got {source.labels[index]}"
            f" ({len(wrong)} such labels)"
        )


def _check_seen(part: Part, source: Source, train: Source, class_names: tuple[str, ...]) -> None:
    """Nobody can recognise a class that training never shows."""
    unseen = np.flatnonzero(~np.isin(source.labels, np.unique(train.labels)))
    if len(unseen):
        index = int(unseen[0])
        raise DataError(
            f"{source.where(index)}: expected a class that the training part has samples of, got"
            f" {class_names[source.labels[index]]} ({len(unseen)} such samples in the {part} part)"
        )


def colours(image: Image.Image | Tensor) -> int:
    """Channels that an image has: 1 or 3, or a tensor's own."""
    if isinstance(image, Tensor):
        return int(image.shape[0])
    return 1 if image.mode in ("1", "L", "I", "I;16", "F", "LA") else 3


def _to_tensor(image: Image.Image | Tensor, channels: int) -> Tensor:
    if isinstance(image, Tensor):
        return image
    converted = image.convert("L" if channels == 1 else "RGB")
    array = np.array(converted)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _resized(image: Tensor, side: int) -> Tensor:
    resized = nn.functional.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized


def _augmentation(config: DataConfig, info: DataInfo, seed: int) -> Callable[[Tensor, int, int], Tensor]:
    """A function of an image, the epoch and the sample's index."""
    from distblock.data.augment import augment, build_augmentation  # torchvision takes seconds to import

    transform = build_augmentation(config.augment, image_size=info.image_size, mean=info.mean)
    return lambda image, epoch, index: augment(image, transform, seed=seed, epoch=epoch, index=index)


def scaled(images: Tensor) -> Tensor:
    """Floating, 0..1; a copy."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images.to(torch.float32, copy=True)
