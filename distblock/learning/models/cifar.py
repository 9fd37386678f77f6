"""ResNets for small images: 6n + 2 layers, three groups of n blocks, shortcuts without parameters.

Source: He et al. 2016, "Deep residual learning", arXiv:1512.03385, section 4.2, shortcuts of option A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distblock.learning.network import Block

NAMES = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + r)`` with ``r = bn2(conv2(relu(bn1(conv1(x)))))``.

    The shortcut takes every ``stride``-th row and column and pads with zero channels on both sides.

    Args:
        in_channels, channels: of input and output.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', H / stride, W / stride)``."""
        return self.forward_with_residuals(features)[0]

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and r."""
        hidden = torch.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(hidden))
        return torch.relu(self._shortcut(features) + residual), [residual]

    def _shortcut(self, features: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return features
        before = self.new_channels // 2
        padding = (0, 0, 0, 0, before, self.new_channels - before)
        return nn.functional.pad(features[:, :, :: self.stride, :: self.stride], padding)


def build_blocks(name: str, in_channels: int, *, width: int) -> list[Block]:
    """The blocks of a network; ``width`` channels in the first group, doubled in each further one."""
    per_group = (int(name.removeprefix("resnet")) - 2) // 6
    stem = (
        ("conv1", nn.Conv2d(in_channels, width, 3, padding=1, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("relu", nn.ReLU()),
    )
    blocks, channels = [], width
    for group in range(3):
        for position in range(per_group):
            key = f"layer{group + 1}.{position}"
            out_channels = width * 2**group
            stride = 2 if group > 0 and position == 0 else 1
            module = (key, BasicBlock(channels, out_channels, stride))
            blocks.append(Block(name=key, modules=(*stem, module) if not blocks else (module,)))
            channels = out_channels
    return blocks
