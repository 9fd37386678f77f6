"""Where samples lie: arrays in memory, or the user's own data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distblock.errors import DataError


class Source(Protocol):
    """Samples in stored order.

    Attributes:
        labels: int64, ``(N,)``.
        groups: sizes of the runs of samples that are read together; they add up to N.
        class_names: their names, where they are known.
        window: groups that may be held in memory at once.
    """

    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102

    @property
    def groups(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...] | None: ...  # noqa: D102

    @property
    def window(self) -> int: ...  # noqa: D102

    def image(self, index: int) -> Image.Image | Tensor:
        """One image: PIL, or a tensor ``(C, H, W)``, uint8 or floating and scaled to 0..1."""
        ...

    def where(self, index: int) -> str:
        """How to name the sample in an error."""
        ...


def decode(encoded: Any, where: str) -> Image.Image:
    """An encoded image.

    Args:
        encoded: path or file.
        where: how to name it in an error.

    Raises:
        DataError: it does not decode.
    """
    try:
        image = Image.open(encoded)
        image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(f"{where}: expected an encoded image, got one that does not decode: {error}") from None
    return image


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Images in memory.

    Attributes:
        name: of the data set, for errors.
        images: uint8 or float32, ``(N, C, H, W)``.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    window: int = 1

    @property
    def groups(self) -> Sequence[int]:
        """One."""
        return (len(self.labels),)

    def image(self, index: int) -> Tensor:
        """A view of one image."""
        return torch.from_numpy(self.images[index])

    def where(self, index: int) -> str:
        """Name and row."""
        return f"{self.name}, sample {index}"


class UserSource:
    """A map-style ``torch.utils.data.Dataset`` of ``(image, label)``.

    Args:
        dataset: the user's.
        name: for errors.

    Raises:
        DataError: it has no length, or its labels are no whole numbers.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{name}: expected a map-style torch.utils.data.Dataset of (image, label), got {type(dataset).__name__}"
            )
        self._dataset = dataset
        self._name = name
        self.labels = self._read_labels()
        self.groups = (len(self.labels),)
        names = getattr(dataset, "classes", None)
        self.class_names = tuple(str(each) for each in names) if names else None
        self.window = 1

    def image(self, index: int) -> Image.Image | Tensor:
        """One image as the data set gives it; arrays ``(H, W)`` or ``(H, W, C)`` as tensors ``(C, H, W)``."""
        image = self._dataset[index][0]
        if isinstance(image, np.ndarray):
            array = image[:, :, None] if image.ndim == 2 else image
            return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        if isinstance(image, (Image.Image, Tensor)):
            return image
        raise DataError(f"{self.where(index)}: expected a PIL image, array or tensor, got {type(image).__name__}")

    def where(self, index: int) -> str:
        """Name and index."""
        return f"{self._name}[{index}]"

    def _read_labels(self) -> np.ndarray:
        labels = next((getattr(self._dataset, n) for n in ("targets", "labels") if hasattr(self._dataset, n)), None)
        if labels is None:
            labels = [self._label(index) for index in range(len(self._dataset))]
        array = np.asarray(labels) if len(labels) else np.empty(0, dtype=np.int64)
        if array.ndim != 1 or len(array) != len(self._dataset) or not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"{self._name}: expected a whole number as the label of each of {len(self._dataset)} samples, got"
                f" {array.dtype} of shape {array.shape}"
            )
        return array.astype(np.int64)

    def _label(self, index: int) -> int:
        sample = self._dataset[index]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise DataError(f"{self._name}[{index}]: expected (image, label), got {type(sample).__name__}")
        return int(sample[1])
