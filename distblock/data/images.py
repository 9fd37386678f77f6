"""An image as a tensor: decoded, of one size and so many channels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distblock.errors import DataError


class Images(Protocol):
    """What images are read from."""

    def image(self, index: int) -> Image.Image | Tensor:
        """One of them."""
        ...

    def where(self, index: int) -> str:
        """How to name it in an error."""
        ...


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
    image = to_tensor(source.image(index), channels)
    if resize is not None and tuple(image.shape[1:]) != (resize, resize):
        image = _resized(image, resize)
    if tuple(image.shape) != (channels, image_size, image_size):
        raise DataError(
            f"{source.where(index)}: expected an image of {channels} x {image_size} x {image_size} (channels, height,"
            f" width), got {' x '.join(str(side) for side in image.shape)}; {advice}"
        )
    return image


def colours(image: Image.Image | Tensor) -> int:
    """Channels that an image has: 1 or 3, or a tensor's own."""
    if isinstance(image, Tensor):
        return int(image.shape[0])
    return 1 if image.mode in ("1", "L", "I", "I;16", "F", "LA") else 3


def to_tensor(image: Image.Image | Tensor, channels: int) -> Tensor:
    """As ``(C, H, W)``, of the size that it has."""
    if isinstance(image, Tensor):
        return image
    converted = image.convert("L" if channels == 1 else "RGB")
    array = np.array(converted)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _resized(image: Tensor, side: int) -> Tensor:
    resized = nn.functional.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized


def scaled(images: Tensor) -> Tensor:
    """Floating, 0..1; a copy."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images.to(torch.float32, copy=True)
