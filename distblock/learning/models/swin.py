"""torchvision's Swin Transformers as blocks, under torchvision's own weight names.

A block has two residual branches, attention and MLP; each counts as one r. torchvision keeps maps as ``(N, H, W, C)``;
here they cross from block to block as ``(N, C, H, W)``, so that every auxiliary classifier takes them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distblock.learning.network import Block

NAMES = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")
"""Networks that can be built, e.g. ``swin_t``."""


class ToChannelsLast(nn.Module):
    """``(N, C, H, W)`` to ``(N, H, W, C)``."""

    def forward(self, features: Tensor) -> Tensor:
        """The same values, in that order."""
        return features.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    """``(N, H, W, C)`` to ``(N, C, H, W)``."""

    def forward(self, features: Tensor) -> Tensor:
        """The same values, in that order."""
        return features.permute(0, 3, 1, 2).contiguous()


def build_swin(name: str, *, in_channels: int) -> list[Block]:
    """One of `NAMES` without its classifier; weights as torchvision initializes them.

    The patch embedding belongs to the first block, a merging of patches to the block after it, and the last
    normalization to the last one.

    Args:
        name: torchvision's name.
        in_channels: channels of the images; for other than 3 the patch embedding is made anew.
    """
    from distblock.vision import models  # takes seconds: only for those who need it

    network: Any = models.get_model(name, weights=None)
    if in_channels != 3:
        embedding = network.features[0][0]
        network.features[0][0] = nn.Conv2d(in_channels, embedding.out_channels, 4, stride=4)
    blocks: list[Block] = []
    front: list[tuple[str, nn.Module]] = [("features.0", network.features[0])]
    for index, group in list(network.features.named_children())[1:]:
        if not isinstance(group, nn.Sequential):
            front = [(f"enter.features.{index}", ToChannelsLast()), (f"features.{index}", group)]
            continue
        for position, module in group.named_children():
            name = f"features.{index}.{position}"
            front = front or [(f"enter.{name}", ToChannelsLast())]
            blocks.append(Block(name=name, modules=(*front, (name, module), (f"leave.{name}", ToChannelsFirst()))))
            front = []
    *others, last = blocks
    modules = (*last.modules[:-1], ("norm", network.norm), last.modules[-1])
    return [*others, Block(name=last.name, modules=modules)]
