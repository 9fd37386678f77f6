"""torchvision's VGG networks as blocks: each convolution, with what follows it up to the next one, is a block.

They have no shortcuts: a stage's transport cost is the distance of its output from its input, where the shapes agree.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from distblock.learning.network import Block

NAMES = tuple(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn"))
"""Networks that can be built, e.g. ``vgg19_bn``."""


def build_vgg(name: str, *, in_channels: int) -> list[Block]:
    """One of `NAMES` without its classifier; weights as torchvision initializes them.

    Args:
        name: torchvision's name.
        in_channels: channels of the images; for other than 3 the first convolution is made anew.
    """
    from distblock.vision import models  # takes seconds: only for those who need it

    network: Any = models.get_model(name, weights=None)
    if in_channels != 3:
        network.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
        nn.init.kaiming_normal_(network.features[0].weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(network.features[0].bias)
    groups: list[list[tuple[str, nn.Module]]] = []
    for index, module in network.features.named_children():
        if isinstance(module, nn.Conv2d):
            groups.append([])
        groups[-1].append((f"features.{index}", module))
    return [Block(name=group[0][0], modules=tuple(group)) for group in groups]
