"""Auxiliary classifiers: F_k, trained with its stage, by which the stage learns without those after it."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from distblock.errors import InputError


def build_classifier(name: str, features: Tensor, *, num_classes: int) -> nn.Module:
    """A classifier for a stage's output.

    Args:
        name: ``conv`` (the scripts' 1CNN), ``linear``, or ``mlp-sr`` (Belilovsky et al. 2020, arXiv:1901.08164).
        features: an example ``(N, C, H, W)``; for ``linear`` also ``(N, T, C)`` or ``(N, C)``. Only its shape is used.
        num_classes: classes to tell apart.

    Returns:
        A module from such features to logits ``(N, num_classes)``.

    Raises:
        InputError: the classifier cannot take features of this shape.
    """
    if name == "linear":
        return _linear(features, num_classes)
    if features.ndim != 4:
        raise InputError(
            f"model.classifier: {name} expects features (N, C, H, W), got {tuple(features.shape)}; choose linear"
        )
    channels, height, width = features.shape[1:]
    if name == "conv":
        return _conv(channels, height, width, num_classes)
    return _mlp_sr(channels, height, width, num_classes)


class _TokenMean(nn.Module):
    """Mean over all but samples and channels: ``(N, C, H, W)``, ``(N, T, C)`` or ``(N, C)`` to ``(N, C)``."""

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return features.mean(dim=(2, 3))
        return features.mean(dim=1) if features.ndim == 3 else features


def _linear(features: Tensor, num_classes: int) -> nn.Module:
    if features.ndim not in (2, 3, 4):
        raise InputError(
            f"model.classifier: linear expects features (N, C, H, W), (N, T, C) or (N, C), got {tuple(features.shape)}"
        )
    channels = features.shape[1] if features.ndim == 4 else features.shape[-1]
    return nn.Sequential(OrderedDict(pool=_TokenMean(), linear=nn.Linear(channels, num_classes)))


def _conv(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    pool = max(1, min(height, width) // 2)
    flat = channels * (height // pool) * (width // pool)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(pool),
            bn=nn.BatchNorm2d(channels),
            flatten=nn.Flatten(),
            linear=nn.Linear(flat, num_classes),
        )
    )


def _mlp_sr(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    hidden = 4 * channels
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((math.ceil(height / 4), math.ceil(width / 4)))]
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    for _ in range(3):
        layers += [nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))
