"""torchvision's ResNets, ResNeXts and Wide ResNets, taken apart into blocks under torchvision's own weight names.

The architecture stays torchvision's, the stem for large images (a 7x7 convolution and a pooling) included; its ``fc``
is left out, since every stage has an auxiliary classifier.
"""

from __future__ import annotations

from typing import Any

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
"""Networks that can be built, e.g. ``resnet18``."""


def build_torchvision_resnet(name: str, *, in_channels: int) -> list[Block]:
    """One of `NAMES` without its classifier; weights as torchvision initializes them.

    Args:
        name: torchvision's name.
        in_channels: channels of the images; for other than 3 the first convolution is made anew.
    """
    from distblock.vision import models  # takes seconds: only for those who need it

    network: Any = models.get_model(name, weights=None)
    if in_channels != 3:
        network.conv1 = _first_convolution(in_channels, network.conv1.out_channels)
    blocks = [
        Block(name=f"{group}.{index}", modules=((f"{group}.{index}", module),))
        for group in ("layer1", "layer2", "layer3", "layer4")
        for index, module in network.get_submodule(group).named_children()
    ]
    stem = tuple((part, network.get_submodule(part)) for part in ("conv1", "bn1", "relu", "maxpool"))
    return [Block(name=blocks[0].name, modules=(*stem, *blocks[0].modules)), *blocks[1:]]


def _first_convolution(in_channels: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
