"""Images without labels, to predict: a folder, a Parquet file, or single files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from distblock.data.dataset import DataInfo
from distblock.data.images import Images, colours, read_image, scaled
from distblock.data.parquet import ParquetSource, locate
from distblock.data.sources import decode
from distblock.errors import DataError

SUFFIXES = tuple(sorted(set(Image.registered_extensions())))


class Countable(Images, Protocol):
    """Images in an order."""

    def __len__(self) -> int: ...


class ImageFiles:
    """Files in an order.

    Args:
        paths: of them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> Image.Image:
        """Decode one.

        Raises:
            DataError: it does not decode.
        """
        return decode(self._paths[index], self.where(index))

    def where(self, index: int) -> str:
        """Its path."""
        return str(self._paths[index])


def open_images(places: Sequence[str], *, memory_bytes: int) -> Countable:
    """Images to predict.

    Args:
        places: one folder (all images below it, in order of their paths), one Parquet file, or image files.
        memory_bytes: most bytes of a Parquet file's images held at once.

    Raises:
        DataError: there are none.
    """
    if len(places) == 1 and places[0].endswith(".parquet"):
        filesystem, path = locate(places[0])
        return ParquetSource(filesystem, path, memory_bytes=memory_bytes, is_labelled=False)
    if len(places) == 1 and Path(places[0]).is_dir():
        found = sorted(path for path in Path(places[0]).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{places[0]}: expected images below this folder (such as .png or .jpg), got none")
        return ImageFiles(found)
    missing = [place for place in places if not Path(place).is_file()]
    if missing or not places:
        raise DataError(
            f"{missing[0] if missing else 'data'}: expected a folder, a .parquet file or image files, got no such file"
        )
    return ImageFiles([Path(place) for place in places])


def read_images(images: Countable, indices: Sequence[int], *, info: DataInfo, resize: int | None) -> Tensor:
    """Some of them, floating, scaled to 0..1, ``(N, C, H, W)``.

    Raises:
        DataError: one does not decode, or is not of the size or the colours that the network was trained on.
    """
    return scaled(torch.stack([_read(images, index, info, resize) for index in indices]))


def _read(images: Countable, index: int, info: DataInfo, resize: int | None) -> Tensor:
    image = images.image(index)
    names = {1: "a grey image", 3: "an image in colours"}
    if colours(image) != info.channels:
        came = image.mode if isinstance(image, Image.Image) else f"{len(image)} channels"
        raise DataError(
            f"{images.where(index)}: expected {names.get(info.channels, f'{info.channels} channels')}, as the run was"
            f" trained on, got {came}; convert it first"
        )
    return read_image(
        images,
        index,
        channels=info.channels,
        image_size=info.image_size,
        resize=resize,
        advice="resize it first, as the run's images were",
    )
