"""`distblock verify` finds faults that were planted, and names them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from further import further
from torch import Tensor, nn

from distblock.config import make_config
from distblock.learning.checks import Finding
from distblock.verification import verify

CONFIG = {"data": {"batch_size": 32}, "model": {"classifier": "linear"}}
PLAIN_CHECKS = 5
"""All but the last, which starts workers."""


def findings(build: Callable[..., Any], **changes: Any) -> list[Finding]:
    return list(islice(verify(make_config({**CONFIG, **changes}), model=build), PLAIN_CHECKS))


def faults(build: Callable[..., Any]) -> str:
    return "\n".join(fault for finding in findings(build) for fault in finding.faults)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_residuals(x)[0]

    def forward_with_residuals(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        r = self.conv(x)
        return x + r, [r]


def sound(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, 8, 3, padding=1), Residual(8), nn.Sequential(nn.Dropout(0.5), Residual(8))]


def test_a_sound_network_has_no_faults():
    found = findings(sound)
    assert len(found) == PLAIN_CHECKS
    assert [finding.faults for finding in found] == [()] * PLAIN_CHECKS


def test_a_weight_in_two_stages():
    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        shared = nn.Conv2d(8, 8, 1)
        return [nn.Sequential(nn.Conv2d(in_channels, 8, 1), shared), nn.Sequential(nn.ReLU(), shared)]

    assert "expected in one block alone, found in block 0" in faults(build)


def test_a_weight_in_no_stage():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Conv2d(8, 8, 1)]  # a plain list: torch does not see it

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](x)

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, 8, 1), Hidden()]

    found = faults(build)
    assert "stage 1: its loss reaches a weight of shape (8, 8, 1, 1) that lies in no stage" in found


def test_a_weight_that_is_not_used():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Conv2d(8, 8, 1)
            self.unused = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, 8, 1), Idle()]

    assert "1.unused.weight does not change" in faults(build)


def test_a_hidden_random_state():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + float(np.random.rand())

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), Noise())]

    found = faults(build)
    assert "stage 1: blocks.1.1 gives another output for the same input" in found


def test_a_gradient_that_leaks_into_the_neighbour():
    kept: list[Tensor] = []

    class Keeps(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            kept[:] = [super().forward(input)]
            return kept[0]

    class Takes(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + 0.1 * kept[0][: len(input)])

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [Keeps(in_channels, 8, 1), Takes(8, 8, 1)]

    assert "stage 1: its loss reaches blocks.0.bias of stage 0" in faults(build)


def test_a_block_that_writes_to_its_input():
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0.5)

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, 8, 1), nn.Sequential(InPlace(), nn.Conv2d(8, 8, 1))]

    assert "expected not to write to its input, but it does" in faults(build)


def test_residuals_that_are_not_what_the_block_adds():
    class Lies(Residual):
        def forward_with_residuals(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            r = self.conv(x)
            return x + r, [torch.zeros_like(r) if torch.is_grad_enabled() else r]

    def build(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, 8, 1), Lies(8)]

    assert "stage 1: transport cost 0, but by the definition" in faults(build)


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("regime", [further("parallel"), "wavefront"])
def test_workers_agree_on_the_default_network(regime: str):
    config = make_config({"regime": {"name": regime}})
    *_, last = verify(config)
    assert last.check == "workers give the plain loop's weights, whatever their number"
    assert last.faults == ()
    assert last.shown == "1, 2, 3 workers"
