"""The K-M ResNets of the paper's block-wise experiments: K stages of M pre-activation blocks behind an encoder.

A pre-activation block ends in a convolution and adds nothing after its sum, so ``T(x) = x + r(x)`` exactly: each block
is one step of a transport, which is what the theory speaks of.

The encoder and every block are blocks of their own here; the paper's stages are cuts: 10-1 is one block a stage (11
stages, the encoder first), 2-7 is ``model.cuts`` 1, 8 (see `paper_cuts`).

Source: Karkar et al. 2022, arXiv:2210.00949; blocks of He et al. 2016, "Identity mappings in deep residual networks",
arXiv:1603.05027.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from distblock.learning.network import Block

WIDTH = 256
"""Channels of the first half, unless told otherwise."""


class PreactivationBlock(nn.Module):
    """``x + conv2(relu(bn2(conv1(relu(bn1(x))))))``, 3x3 convolutions without bias.

    Args:
        channels: channels of x and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, channels, H, W)`` to the same shape."""
        return self.forward_with_residuals(features)[0]

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the residual r."""
        residual = self.conv2(relu(self.bn2(self.conv1(relu(self.bn1(features))))))
        return features + residual, [residual]


def build_preactivation_resnet(num_groups: int, group_blocks: int, *, width: int, in_channels: int) -> list[Block]:
    """A K-M ResNet: the encoder, then ``K * M`` blocks; its classifier is not part of it.

    The encoder is a 3x3 convolution of stride 2. In front of the block in the middle another one halves the map again
    and doubles the channels; it belongs to that block and hands out no residual.

    Args:
        num_groups: K.
        group_blocks: M.
        width: channels of the first half.
        in_channels: channels of the images.
    """
    blocks = [Block(name="encoder", modules=(("encoder", _halve(in_channels, width)),))]
    num_blocks = num_groups * group_blocks
    for index in range(num_blocks):
        name = f"blocks.{index}"
        modules: list[tuple[str, nn.Module]] = []
        if index == num_blocks // 2:
            modules.append(("downsample", _halve(width, 2 * width)))
        channels = width if index < num_blocks // 2 else 2 * width
        modules.append((name, PreactivationBlock(channels)))
        blocks.append(Block(name=name, modules=tuple(modules)))
    return blocks


def paper_cuts(num_groups: int, group_blocks: int) -> tuple[int, ...]:
    """``model.cuts`` that make the encoder and each of the K groups a stage.

    >>> paper_cuts(2, 7)
    (1, 8)
    """
    return tuple(1 + group * group_blocks for group in range(num_groups))


def _halve(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
