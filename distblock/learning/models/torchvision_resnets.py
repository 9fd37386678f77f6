"""Torchvision's ResNets, ResNeXts and Wide ResNets, without their last classifier: every stage has its own.

Names are torchvision's own, so ``load_state_dict`` takes an export back.
"""

from __future__ import annotations

from torch import nn

from distblock.learning.network import Block

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def build_blocks(name: str, in_channels: int) -> list[Block]:
    """The blocks of a network; its stem belongs to the first."""
    from distblock.vision import models  # takes seconds: only for those who need it

    network = getattr(models, name)(weights=None)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    stem = tuple((part, getattr(network, part)) for part in ("conv1", "bn1", "relu", "maxpool"))
    keyed = [
        (f"{layer}.{position}", module)
        for layer in ("layer1", "layer2", "layer3", "layer4")
        for position, module in enumerate(getattr(network, layer))
    ]
    (first, module), *others = keyed
    return [
        Block(name=first, modules=(*stem, (first, module))),
        *(Block(name=key, modules=((key, module),)) for key, module in others),
    ]
