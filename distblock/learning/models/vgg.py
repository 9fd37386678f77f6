"""torchvision's VGG networks as blocks: each convolution, with what follows it up to the next one, is a block.

They have no shortcuts: a stage's transport cost is the distance of its output from its input, where the shapes agree.
"""

from __future__ import annotations

from typing import Any

import torch
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

    # Its classifier would take 500 MB of every worker for a moment; without storage it takes none.
    with torch.device("meta"):
        network: Any = models.get_model(name, weights=None, init_weights=False)
    features: nn.Sequential = network.features
    if in_channels != 3:
        features[0] = nn.Conv2d(in_channels, 64, 3, padding=1, device="meta")
    features.to_empty(device="cpu")
    for layer in features:
        _initialize(layer)
    groups: list[list[tuple[str, nn.Module]]] = []
    for index, module in features.named_children():
        if isinstance(module, nn.Conv2d):
            groups.append([])
        groups[-1].append((f"features.{index}", module))
    return [Block(name=group[0][0], modules=tuple(group)) for group in groups]


def _initialize(layer: nn.Module) -> None:
    """As torchvision does."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()
