"""A data set, opened: its classes, its parts, and what is known of it, each checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distblock.config import DataConfig
from distblock.data.classes import choose_classes, few
from distblock.data.collections import Sources, open_sources
from distblock.data.dataset import DataInfo, DataSet, Portion
from distblock.data.images import colours, read_image, scaled, to_tensor
from distblock.data.sources import Source
from distblock.data.split import generator, stratified
from distblock.errors import DataError
from distblock.messages import Part

TEST_SHARE = 0.2
"""Share split off for test where the set has no test part of its own."""

STATISTICS_SAMPLES = 2000
"""Training samples, evenly spaced, that mean and deviation are taken over."""

TRIAL_SAMPLES = 500
"""Samples, evenly spaced, of each other part that are decoded as a trial before anything starts."""


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
) -> dict[Part, Portion]:
    divided = _divide_training(sources, config, seed)
    train = divided["train"]
    if config.fraction < 1:
        train = train[stratified(sources["train"].labels[train], config.fraction, generator(seed, "fraction"))]
    if config.train_classes or config.per_class:
        train = train[few(sources["train"].labels[train], config, class_names, generator(seed, "few"))]
    divided["train"] = train
    portions: dict[Part, Portion] = {
        part: Portion(source=sources["train"], indices=indices) for part, indices in divided.items()
    }
    for part, source in sources.items():
        if part != "train":
            portions[part] = Portion(source=source, indices=np.arange(len(source.labels)))
    for part, portion in portions.items():
        if not len(portion.indices):
            raise DataError(f"data: expected samples in the {part} part, got none")
    return portions


def _describe(
    config: DataConfig, class_names: tuple[str, ...], portions: Mapping[Part, Portion], *, whole: np.ndarray
) -> DataInfo:
    source = portions["train"].source
    first = source.image(int(whole[0]))
    channels = colours(first)
    image_size = config.image_size or int(to_tensor(first, channels).shape[1])

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
