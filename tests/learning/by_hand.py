"""Residual blocks written out with functions, out of place: what they put out, and their residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu


def normalize(features: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """BatchNorm in training mode, written out."""
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    variance = features.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    scaled = (features - mean) / torch.sqrt(variance + layer.eps)
    return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]


def basic_by_hand(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = relu(normalize(conv2d(x, block.conv1.weight, stride=block.stride, padding=1), block.bn1))
    residual = normalize(conv2d(hidden, block.conv2.weight, padding=1), block.bn2)
    return relu(shortcut_by_hand(block, x) + residual), residual


def bottleneck_by_hand(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = relu(normalize(conv2d(x, block.conv1.weight), block.bn1))
    hidden = relu(normalize(conv2d(hidden, block.conv2.weight, stride=block.stride, padding=1), block.bn2))
    residual = normalize(conv2d(hidden, block.conv3.weight), block.bn3)
    return relu(shortcut_by_hand(block, x) + residual), residual


def shortcut_by_hand(block: Any, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    return normalize(conv2d(x, block.downsample[0].weight, stride=block.stride), block.downsample[1])


def cifar_by_hand(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    stride = block.conv1.stride
    hidden = relu(normalize(conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1))
    residual = normalize(conv2d(hidden, block.conv2.weight, padding=1), block.bn2)
    added = residual.shape[1] - x.shape[1]
    return relu(pad(x[:, :, :: stride[0], :: stride[1]], (0, 0, 0, 0, 0, added)) + residual), residual


def preactivation_by_hand(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = conv2d(relu(normalize(x, block.bn1)), block.conv1.weight, padding=1)
    residual = conv2d(relu(normalize(hidden, block.bn2)), block.conv2.weight, padding=1)
    return x + residual, residual
