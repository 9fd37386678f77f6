"""The ResNets for small images: 6n+2 layers, three groups of n blocks, parameter-free shortcuts.

Source: He et al. 2016, "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from distblock.learning.network import Block

DEPTHS = (8, 14, 20, 32, 44, 56, 110)
WIDTH = 16
"""Channels of the first group, unless told otherwise."""


class CifarBlock(nn.Module):
    """``relu(shortcut(x) + r(x))`` with ``r = bn2(conv2(relu(bn1(conv1(x)))))``.

    Where the shape changes, the shortcut takes every second row and column and appends channels of zeros (the paper's
    option A), so it has no weights.

    Args:
        in_channels: channels of x.
        channels: channels of the output, at least ``in_channels``.
        stride: 2 halves the map, 1 keeps it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added_channels = channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, channels, H / stride, W / stride)``, rounded up."""
        return self.forward_with_residuals(features)[0]

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the residual r."""
        residual = self.bn2(self.conv2(relu(self.bn1(self.conv1(features)))))
        return relu(self._shortcut(features) + residual), [residual]

    def _shortcut(self, features: Tensor) -> Tensor:
        if self.stride > 1:
            features = features[:, :, :: self.stride, :: self.stride]
        return pad(features, (0, 0, 0, 0, 0, self.added_channels)) if self.added_channels else features


def build_cifar_resnet(depth: int, *, width: int, in_channels: int) -> list[Block]:
    """A ResNet of ``depth`` layers; its classifier is not part of it.

    Args:
        depth: 6n + 2.
        width: channels of the first group; the next two have twice and four times as many.
        in_channels: channels of the images.
    """
    blocks = []
    channels = width
    for group in range(3):
        for index in range((depth - 2) // 6):
            narrows = group > 0 and index == 0
            out_channels = width * 2**group
            name = f"layer{group + 1}.{index}"
            modules = ((name, CifarBlock(channels, out_channels, 2 if narrows else 1)),)
            blocks.append(Block(name=name, modules=modules if blocks else (*_stem(in_channels, width), *modules)))
            channels = out_channels
    return blocks


def _stem(in_channels: int, width: int) -> tuple[tuple[str, nn.Module], ...]:
    conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    return ("conv1", conv), ("bn1", nn.BatchNorm2d(width)), ("relu", nn.ReLU())
