"""Augmentation: a function of the run's seed, the epoch and the sample, and of nothing else.

Transforms draw from torch's global generator, so what one sample gets would depend on who was drawn before it, and a
resumed or differently cut run would see other images. Each sample gets a generator state of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distblock.chance import seeded
from distblock.seeds import derive_seed
from distblock.vision import v2


def build_augmentation(names: Sequence[str], *, image_size: int, mean: Sequence[float]) -> v2.Transform:
    """Transforms of training images, in the order of their names.

    Args:
        names: ``crop`` (random crop after padding by an eighth of the side), ``flip`` (horizontal), ``cutout``
            (a square of half the side, filled with the mean colour; DeVries & Taylor 2017, arXiv:1708.04552, but
            always whole inside the image).
        image_size: side of the images.
        mean: mean colour, each channel from 0 to 1.

    Returns:
        A transform of floating tensors ``(C, H, W)`` scaled to 0..1.
    """
    makers = {
        "crop": lambda: v2.RandomCrop(image_size, padding=max(1, image_size // 8)),
        "flip": lambda: v2.RandomHorizontalFlip(),
        "cutout": lambda: v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0), value=list(mean)),  # pyright: ignore[reportArgumentType],
    }
    return v2.Compose([makers[name]() for name in names])


def augment(image: Tensor, transform: v2.Transform, *, seed: int, epoch: int, index: int) -> Tensor:
    """One image, transformed; ``index`` is the sample's in its data set."""
    with seeded(derive_seed(seed, "augment", epoch, index)):
        return transform(image)
