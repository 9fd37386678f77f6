"""Data sets by name: which sources make up training, validation and test part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from distblock.config import DataConfig
from distblock.data.parquet import ParquetSource, locate
from distblock.data.sources import ArraySource, Source, UserSource, decode
from distblock.errors import DataError
from distblock.imports import import_callable
from distblock.messages import Part

Sources = dict[Part, Source]
"""A source for each part that the data set has of its own; training always."""


def open_sources(config: DataConfig, dataset: Callable[..., Any] | None) -> Sources:
    """Open the data set.

    Raises:
        DataError: it is unknown, missing or broken; the message names the file.
    """
    if dataset is not None or ":" in config.name:
        return _user(config.name, dataset or import_callable(config.name, key="data.name"))
    if config.name == "digits":
        return {"train": _digits()}
    known = {**dict.fromkeys(_TORCHVISION, _torchvision), "parquet": _parquet, "folder": _folder}
    if config.name not in known:
        raise DataError(
            f"data.name: expected one of digits, {', '.join(known)}, or package.module:function, got {config.name}"
        )
    path = config.path or ""
    if "://" not in path and not Path(path).is_dir():
        raise DataError(f"data.path: expected the folder of {config.name}, got {path}: no such folder")
    return known[config.name](config)


def _digits() -> Source:
    # sklearn.datasets takes two seconds to import, in every process that opens the data: its file will do.
    package = find_spec("sklearn")
    path = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        raise DataError(f"data.name: digits are a file of scikit-learn, and there is no {path}; install scikit-learn")
    rows = np.loadtxt(path, delimiter=",")
    # Grey values 0..16 to 0..255, as images are elsewhere.
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, -1].astype(np.int64)
    return ArraySource(name="digits", images=images, labels=labels, class_names=tuple("0123456789"))


def _parquet(config: DataConfig) -> Sources:
    filesystem, root = locate(config.path or "")
    paths: dict[Part, str] = {part: f"{root.rstrip('/')}/{part}.parquet" for part in ("train", "validation", "test")}
    if filesystem.get_file_info(paths["validation"]).type.name == "NotFound":
        del paths["validation"]
    return {part: ParquetSource(filesystem, path, memory_bytes=config.memory_bytes) for part, path in paths.items()}


_TORCHVISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}),
}
"""The class of each set, and what it takes for its training and its test part."""


def _torchvision(config: DataConfig) -> Sources:
    from distblock.vision import datasets  # takes seconds: only for those who need it

    kind, train, test = _TORCHVISION[config.name]
    sources: Sources = {}
    options_of: dict[Part, dict[str, Any]] = {"train": train, "test": test}
    for part, options in options_of.items():
        try:
            dataset = getattr(datasets, kind)(root=config.path, download=False, **options)
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"data.path: expected {config.name} as torchvision stores it in {config.path}, got: {reason}"
            ) from None
        sources[part] = _from_torchvision(dataset, config.name)
    return sources


def _from_torchvision(dataset: Any, name: str) -> Source:
    data = np.asarray(dataset.data)
    if data.ndim == 3:  # (N, H, W)
        data = data[:, None]
    elif data.shape[-1] in (1, 3) and data.shape[1] not in (1, 3):  # (N, H, W, C)
        data = data.transpose(0, 3, 1, 2)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels).astype(np.int64)
    names = getattr(dataset, "classes", None)
    return ArraySource(name=name, images=data, labels=labels, class_names=tuple(names) if names else None)


class _FolderSource(UserSource):
    """Images in a folder for each class."""

    def where(self, index: int) -> str:
        return str(self._dataset.samples[index][0])

    def image(self, index: int) -> Image.Image | Tensor:
        return decode(self._dataset.samples[index][0], self.where(index))


def _folder(config: DataConfig) -> Sources:
    root = Path(config.path or "")
    if not (root / "train").is_dir():
        return {"train": _image_folder(root)}
    sources: Sources = {"train": _image_folder(root / "train")}
    folders: dict[Part, tuple[str, ...]] = {"validation": ("validation", "val"), "test": ("test",)}
    for part, names in folders.items():
        found = next((root / name for name in names if (root / name).is_dir()), None)
        if found is not None:
            sources[part] = _image_folder(found)
            if sources[part].class_names != sources["train"].class_names:
                raise DataError(
                    f"{found}: expected the classes of training {sources['train'].class_names}, got"
                    f" {sources[part].class_names}"
                )
    return sources


def _image_folder(root: Path) -> Source:
    from distblock.vision import datasets  # takes seconds: only for those who need it

    try:
        return _FolderSource(datasets.ImageFolder(str(root)), str(root))
    except (FileNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{root}: expected a folder of images for each class, got: {reason}") from None


def _takes_part(function: Callable[..., Any]) -> bool:
    """Whether it asks for an argument: one without a default, or one called part."""
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.name == "part" or (each.default is each.empty and each.kind in positional) for each in parameters)


def _user(name: str, function: Callable[..., Any]) -> Sources:
    """Call the user's function: for each part if it takes one, else once."""
    try:
        takes_part = _takes_part(function)
        parts: dict[Part, Any] = {"train": function("train") if takes_part else function()}
        if takes_part:
            parts |= {"validation": function("validation"), "test": function("test")}
    except Exception as error:
        raise DataError(
            f"data: {name} failed: {type(error).__name__}: {' '.join(str(error).split())}; expected a function of part"
            " ('train', 'validation' or 'test'; None where there is none), or of nothing, that returns a Dataset"
        ) from error
    return {part: UserSource(dataset, f"{name} ({part})") for part, dataset in parts.items() if dataset is not None}
