"""How weights begin."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from distblock.learning.initialization import Initialization, initialize


def layers() -> Any:
    return nn.Sequential(
        nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Linear(200, 100), nn.LayerNorm(4), nn.Embedding(2, 2)
    )


def test_orthogonal_rows_have_the_gain_as_length():
    """Oracle: W W^T = gain^2 I for fewer rows than columns."""
    module = layers()
    initialize(module, "orthogonal", gain=0.1, seed=1)
    for layer in (module[0], module[2]):
        rows = layer.weight.detach().flatten(1).double()
        torch.testing.assert_close(rows @ rows.T, 0.01 * torch.eye(len(rows)).double(), atol=1e-7, rtol=0)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_kaiming_has_its_deviation():
    """Oracle: sqrt(2 / fan_in); 20,000 draws have it within 2 %."""
    module = layers()
    initialize(module, "kaiming", gain=0.1, seed=1)
    assert module[2].weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert torch.equal(module[0].bias, torch.zeros(8))


@pytest.mark.parametrize("how", ["orthogonal", "kaiming"])
def test_normalizations_begin_as_identities_and_others_stay(how: Initialization):
    module = layers()
    for parameter in module.parameters():
        nn.init.constant_(parameter, 7.0)
    initialize(module, how, gain=0.1, seed=1)
    for norm in (module[1], module[3]):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    assert torch.equal(module[4].weight, torch.full((2, 2), 7.0))


def test_built_touches_nothing():
    module = layers()
    before = copy.deepcopy(module.state_dict())
    initialize(module, "built", gain=0.1, seed=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_seed_alone_decides_and_the_global_generator_stays():
    first, second, other = layers(), layers(), layers()
    initialize(first, "orthogonal", gain=0.1, seed=1)
    state = torch.random.get_rng_state()
    initialize(second, "orthogonal", gain=0.1, seed=1)
    initialize(other, "orthogonal", gain=0.1, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_layers_without_bias_or_weights():
    module: Any = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    initialize(module, "orthogonal", gain=1.0, seed=0)
    assert [name for name, _ in module.named_parameters()] == ["0.weight"]
    torch.testing.assert_close(module[0].weight.flatten(1).norm(dim=1), torch.ones(4))
