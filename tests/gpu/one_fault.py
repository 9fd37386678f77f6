"""A network whose device really fails, once: the first process that comes to its third step asserts on the GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

FLAG = "DISTBLOCK_TEST_FLAG"
"""Environment variable: the file that says that it has happened."""


class Faulty(nn.Module):
    """A linear residual step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self._calls = 0

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and its residual."""
        if features.is_cuda:
            self._fail(features.device)
        residual = torch.relu(self.linear(features))
        return features + residual, [residual]

    def forward(self, features: Tensor) -> Tensor:
        """The output."""
        return self.forward_with_residuals(features)[0]

    def _fail(self, device: torch.device) -> None:
        self._calls += 1
        flag = Path(os.environ[FLAG])
        if self._calls == 3 and not flag.exists():
            flag.touch()
            torch._assert_async(torch.zeros((), device=device, dtype=torch.bool))  # pyright: ignore[reportPrivateImportUsage]


class Full(Faulty):
    """A step that asks for more memory than any GPU has."""

    def _fail(self, device: torch.device) -> None:
        torch.empty(2**45, device=device)


def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    """Three blocks, of which the second's device fails."""
    width = in_channels * image_size * image_size
    return [nn.Sequential(nn.Flatten(), nn.Linear(width, 32)), Faulty(32), nn.Sequential(nn.Linear(32, 32), nn.ReLU())]


def build_full(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    """Two blocks, of which the second's device is full."""
    width = in_channels * image_size * image_size
    return [nn.Sequential(nn.Flatten(), nn.Linear(width, 32)), Full(32)]
