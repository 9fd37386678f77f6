"""Blocks, their residuals, and who owns which weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from by_hand import basic_by_hand, bottleneck_by_hand
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, relu

from distblock.errors import InputError
from distblock.learning.network import Block, check_ownership, main_tensor, run_blocks
from distblock.learning.objective import local_loss, transport_cost
from distblock.vision import models


def block_of(*modules: nn.Module) -> Block:
    return Block(name="b", modules=tuple((f"m{index}", module) for index, module in enumerate(modules)))


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaving, residuals = block_of(module).run(x)
    return main_tensor(leaving), residuals


def downsampling(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels))


def torchvision_blocks() -> list[tuple[nn.Module, Any]]:
    basic, bottleneck = models.resnet.BasicBlock, models.resnet.Bottleneck
    return [
        (basic(8, 8), basic_by_hand),
        (basic(8, 12, stride=2, downsample=downsampling(8, 12)), basic_by_hand),
        (bottleneck(8, 2), bottleneck_by_hand),
        (bottleneck(8, 3, stride=2, downsample=downsampling(8, 12)), bottleneck_by_hand),
    ]


@pytest.mark.parametrize("which", range(4))
def test_torchvision_blocks_and_their_gradients_by_hand_in_float64(which: int):
    """Oracle: the block written out of place with functions, differentiated by autograd in float64."""
    torch.manual_seed(which)
    module, by_hand = torchvision_blocks()[which]
    module = module.double().train()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.3, 0.4)
    reference = copy.deepcopy(module)
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    direction = torch.randn_like(by_hand(reference, x)[0])

    leaving, residuals = run(module, x)
    local_loss((leaving * direction).sum(), transport_cost(residuals), 0.01).backward()
    expected, residual = by_hand(reference, x)
    ((expected * direction).sum() + (residual**2).mean() / 0.02).backward()

    torch.testing.assert_close(leaving, expected)
    assert len(residuals) == 1
    torch.testing.assert_close(residuals[0], residual)
    for (name, parameter), other in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("which", range(4))
def test_watching_a_torchvision_block_changes_neither_its_numbers_nor_its_state(which: int):
    module = torchvision_blocks()[which][0]
    plain = copy.deepcopy(module)
    x = torch.randn(3, 8, 6, 6)
    for training in (True, False):
        leaving, _ = run(module.train(training), x)
        assert torch.equal(leaving, plain.train(training)(x))
    assert list(module.state_dict()) == list(plain.state_dict())
    assert not any(each._forward_hooks for each in module.modules())


def test_the_hook_is_gone_after_a_failure():
    module = models.resnet.BasicBlock(8, 8)
    with pytest.raises(RuntimeError):
        block_of(module).run(torch.zeros(2, 5, 4, 4))
    assert not any(each._forward_hooks for each in module.modules())


def test_mean_square_of_a_residual_follows_from_its_last_batchnorm():
    """Oracle: a normalized channel's mean square is v / (v + eps), scaled by g^2 and added to b^2."""
    module: Any = models.resnet.BasicBlock(8, 8).double().train()
    nn.init.normal_(module.bn2.weight)
    nn.init.normal_(module.bn2.bias)
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    hidden = relu(batch_norm(conv2d(x, module.conv1.weight, padding=1), None, None, training=True))
    variance = conv2d(hidden, module.conv2.weight, padding=1).var(dim=(0, 2, 3), unbiased=False)
    gamma, beta = module.bn2.weight, module.bn2.bias
    expected = (gamma**2 * variance / (variance + module.bn2.eps) + beta**2).mean()

    _, residuals = run(module, x)
    torch.testing.assert_close(transport_cost(residuals), expected)


class TwoBranches(nn.Module):
    """x + 1, then + 2: two residuals."""

    def forward_with_residuals(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return features + 3, [torch.full_like(features, 1), torch.full_like(features, 2)]


def test_residuals_come_in_forward_order_from_sequentials_too():
    double = nn.Sequential(nn.Identity(), TwoBranches())
    blocks = [block_of(double), block_of(nn.ReLU()), block_of(TwoBranches(), TwoBranches())]
    leaving, residuals = run_blocks(blocks, torch.zeros(1, 2))
    assert main_tensor(leaving).tolist() == [[9, 9]]
    assert [residual[0, 0].item() for residual in residuals] == [1, 2, 1, 2, 1, 2]


def test_a_module_without_residuals_hands_out_none():
    assert block_of(nn.ReLU()).run(torch.tensor([-1.0, 2.0]))[1] == []


def test_main_tensor():
    a, b = torch.zeros(1), torch.ones(1)
    assert main_tensor(a) is a
    assert main_tensor((a, b)) is a
    assert main_tensor({"mask": b, "features": a}) is a
    assert main_tensor({"tokens": a, "mask": b}) is a


def named(*modules: nn.Module) -> list[Block]:
    return [Block(name=f"blocks.{m}", modules=((f"blocks.{m}", module),)) for m, module in enumerate(modules)]


def test_separate_weights_are_owned_once():
    check_ownership(named(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)))


def test_a_shared_weight_is_named_with_both_blocks():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    with pytest.raises(
        InputError, match=r"weight blocks\.2\.weight: .* block 0 \(blocks\.0\) and in block 2 \(blocks\.2\)"
    ):
        check_ownership(named(first, nn.ReLU(), second))


def test_a_shared_buffer_is_named():
    shared = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(InputError, match=r"blocks\.1\.running_mean"):
        check_ownership(named(shared, shared))


def test_weights_shared_within_a_block_are_its_own():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    check_ownership(named(nn.Sequential(first, second), nn.Linear(2, 2)))
