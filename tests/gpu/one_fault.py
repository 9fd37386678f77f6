"""Networks whose device fails: really, on a GPU; by raising what torch would, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

STEP = 3
"""Of a process, at which it fails."""


class Faulty(nn.Module):
    """A linear residual step, before which something may fail once a process trains.

    Args:
        fail: what; it is given the number of the step, from 1, and the device.
    """

    def __init__(self, fail: Callable[[int, torch.device], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self._fail = fail
        self._steps = 0

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and its residual."""
        # Before workers start, two samples are passed through.
        if torch.is_grad_enabled() and self.training and len(features) > 2:
            self._steps += 1
            self._fail(self._steps, features.device)
        residual = torch.relu(self.linear(features))
        return features + residual, [residual]

    def forward(self, features: Tensor) -> Tensor:
        """The output."""
        return self.forward_with_residuals(features)[0]


def build(
    in_channels: int, image_size: int, num_classes: int, *, fail: Callable[[int, torch.device], None]
) -> list[nn.Module]:
    """Three blocks, of which the second's device fails."""
    width = in_channels * image_size * image_size
    first = nn.Sequential(nn.Flatten(), nn.Linear(width, 32))
    return [first, Faulty(fail), nn.Sequential(nn.Linear(32, 32), nn.ReLU())]


def assert_once(step: int, device: torch.device, *, flag: Path) -> None:
    """Assert on the device at the third step, unless a process has done so before; the context is lost with it."""
    if step == STEP and not flag.exists():
        flag.touch()
        if device.type == "cpu":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        torch._assert_async(torch.zeros((), device=device, dtype=torch.bool))  # pyright: ignore[reportPrivateImportUsage]


def fill(step: int, device: torch.device) -> None:
    """Ask for more memory than there is."""
    if step == STEP:
        torch.empty(2**47, device=device)
