"""The paper's K-M ResNets: K stages of M pre-activation blocks, after an encoder that is a stage of its own.

With a block a stage, ``10-1`` has eleven stages: the encoder and ten. ``2-7`` is ``--model.cuts 1 8``: the encoder
and two stages of seven blocks.

Source: Karkar et al. 2022, arXiv:2210.00949, section 4; the blocks are those of He et al. 2016, "Identity mappings",
arXiv:1603.05027.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from distblock.errors import InputError
from distblock.learning.network import Block


class PreactivationBlock(nn.Module):
    """``x + r`` with ``r = conv2(relu(bn2(conv1(relu(bn1(x))))))``.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return self.forward_with_residuals(features)[0]

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and r."""
        hidden = self.conv1(torch.relu(self.bn1(features)))
        residual = self.conv2(torch.relu(self.bn2(hidden)))
        return features + residual, [residual]


def build_blocks(name: str, in_channels: int, *, width: int) -> list[Block]:
    """The encoder and K * M blocks; at the midpoint the map is halved and the channels are doubled.

    Args:
        name: ``K-M``.
        in_channels: channels of an image.
        width: channels of the first half.

    Raises:
        InputError: the name is no ``K-M``.
    """
    numbers = re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", name)
    if numbers is None:
        raise InputError(f"model.name: expected preact/<K>-<M>, such as preact/10-1, got preact/{name}")
    num_blocks = int(numbers[1]) * int(numbers[2])
    encoder = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
    blocks = [Block(name="encoder", modules=(("encoder", encoder),))]
    for index in range(num_blocks):
        modules: list[tuple[str, nn.Module]] = []
        if index == num_blocks // 2 and index > 0:
            modules.append(("downsample", nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)))
            width *= 2
        modules.append((f"blocks.{index}", PreactivationBlock(width)))
        blocks.append(Block(name=f"blocks.{index}", modules=tuple(modules)))
    return blocks
