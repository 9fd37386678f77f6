"""Auxiliary classifiers: what a stage is judged by, trained with it and never seen by another stage."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from distblock.errors import InputError


class MeanOverTokens(nn.Module):
    """``(N, T, C)`` to ``(N, C)``."""

    def forward(self, features: Tensor) -> Tensor:
        """The mean over tokens."""
        return features.mean(dim=1)


def build_classifier(name: str, features: Tensor, *, num_classes: int) -> nn.Module:
    """A classifier of a stage's output.

    - ``conv``: conv3x3 C->C without bias, ReLU, average pool by p, BatchNorm, flatten, linear.
    - ``linear``: mean over the map or the tokens, linear.
    - ``mlp-sr``: average pool to a quarter of the side, three of [conv1x1, BatchNorm, ReLU], average pool to 2x2, three
      of [linear, BatchNorm, ReLU] of width 4C, linear.

    In ``conv``, p is half of the map's smaller side, rounded down, so that a square map ends as 2x2; a side of 1 is
    not pooled. What a BatchNorm follows in ``mlp-sr`` has no bias.

    Args:
        name: see above.
        features: an example of what is classified, of which only the shape is used: a map ``(N, C, H, W)``; for
            ``linear`` also tokens ``(N, T, C)`` or a vector ``(N, C)``.
        num_classes: logits a sample.

    Returns:
        A module from features to logits ``(N, num_classes)``.

    Raises:
        InputError: the classifier does not take features of this shape.

    Source: ``conv``: the scripts of Karkar et al. 2022 (1CNN); ``mlp-sr``: Belilovsky et al. 2020, arXiv:1901.08164.
    """
    if name == "linear":
        return _linear(features, num_classes)
    if features.ndim != 4:
        raise InputError(
            f"model.classifier {name}: expected maps (N, C, H, W), got features of shape {tuple(features.shape)};"
            " choose --model.classifier linear"
        )
    _, channels, height, width = features.shape
    if name == "conv":
        return _conv(channels, height, width, num_classes)
    return _mlp_sr(channels, height, width, num_classes)


def _linear(features: Tensor, num_classes: int) -> nn.Module:
    if features.ndim == 4:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features.shape[1], num_classes))
    if features.ndim == 3:
        return nn.Sequential(MeanOverTokens(), nn.Linear(features.shape[2], num_classes))
    if features.ndim == 2:
        return nn.Sequential(nn.Linear(features.shape[1], num_classes))
    raise InputError(
        "model.classifier linear: expected maps (N, C, H, W), tokens (N, T, C) or vectors (N, C), got features of shape"
        f" {tuple(features.shape)}; reshape the block's output"
    )


def _conv(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    pool = max(1, min(height, width) // 2)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(pool) if pool > 1 else nn.Identity(),
            bn=nn.BatchNorm2d(channels),
            flatten=nn.Flatten(),
            linear=nn.Linear(channels * (height // pool) * (width // pool), num_classes),
        )
    )


def _mlp_sr(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    pooled = (math.ceil(height / 4), math.ceil(width / 4))
    convolutions = [
        layer
        for _ in range(3)
        for layer in (nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    ]
    dense = [
        layer
        for _ in range(3)
        for layer in (nn.Linear(4 * channels, 4 * channels, bias=False), nn.BatchNorm1d(4 * channels), nn.ReLU())
    ]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(pooled),
        *convolutions,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        *dense,
        nn.Linear(4 * channels, num_classes),
    )
