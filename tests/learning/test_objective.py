"""The transport cost and the local loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distblock.learning.objective import local_loss, stage_tau, stage_transport_cost, transport_cost


def test_transport_cost_by_hand():
    a = torch.full((2, 1, 1, 2), 3.0)  # every element 9 when squared
    b = torch.full((2, 4, 1, 1), 0.5)  # every element 0.25
    assert transport_cost([a, b]).item() == pytest.approx(9.25, rel=1e-6)


def test_transport_cost_wants_residuals():
    with pytest.raises(ValueError, match="got none"):
        transport_cost([])


def test_transport_cost_of_bf16_is_summed_in_fp32():
    """Oracle: the same numbers in float64; 300 ones and a 16 average to a number that bf16 rounds by 0.4 %."""
    residual = torch.tensor([1.0] * 300 + [16.0], dtype=torch.bfloat16)
    cost = transport_cost([residual])
    assert cost.dtype == torch.float32
    assert cost.item() == pytest.approx((300 + 256) / 301, rel=1e-6)


def test_gradient_of_the_transport_cost_by_hand():
    residual = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    transport_cost([residual]).backward()
    assert residual.grad is not None
    assert torch.equal(residual.grad, 2 * residual.detach() / 4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_transport_cost_is_the_mean_of_squares_and_autograd_agrees(memory_format: torch.memory_format):
    """Oracle: torch's own operations in float64."""
    residual = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, other = (residual.contiguous(memory_format=memory_format).float().requires_grad_() for _ in range(2))
    cost = 3 * transport_cost([own, 2 * own])
    cost.backward()
    expected = 3 * (other.double().square().mean() + (2 * other.double()).square().mean())
    expected.backward()
    torch.testing.assert_close(cost.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=0)


def test_a_residual_stage_pays_for_its_residuals_alone():
    entering, leaving = torch.zeros(2, 3), torch.ones(2, 3)
    cost = stage_transport_cost(entering, leaving, [torch.full((2, 3), 2.0)])
    assert cost is not None
    assert cost.item() == 4


def test_a_plain_stage_pays_for_the_way_it_moves_its_main_tensor():
    entering = {"mask": torch.zeros(2, 3), "features": torch.zeros(2, 3)}
    leaving = (torch.full((2, 3), -3.0), torch.ones(7))
    cost = stage_transport_cost(entering, leaving, [])
    assert cost is not None
    assert cost.item() == pytest.approx(9, rel=1e-6)


def test_a_plain_stage_that_changes_the_shape_pays_nothing():
    assert stage_transport_cost(torch.zeros(2, 3), torch.ones(2, 4), []) is None


@pytest.mark.parametrize(
    ("num_stages", "expected"), [(1, [1.0]), (2, [0.5, 1.0]), (3, [0.5, 1.0, 1.0]), (4, [0.5, 0.5, 1.0, 1.0])]
)
def test_varying_tau_is_half_in_the_first_half(num_stages: int, expected: list[float]):
    taus = [stage_tau(1.0, varying=True, stage=stage, num_stages=num_stages) for stage in range(num_stages)]
    assert taus == expected
    assert [stage_tau(1.0, varying=False, stage=stage, num_stages=num_stages) for stage in range(num_stages)] == [
        1.0
    ] * num_stages


def test_local_loss_by_hand():
    assert local_loss(torch.tensor(1.5), torch.tensor(3.0), 0.25).item() == 1.5 + 3 / 0.5


@pytest.mark.parametrize(("cost", "tau"), [(None, 1.0), (torch.tensor(math.inf), math.inf)])
def test_plain_greedy_learning_is_the_cross_entropy_itself(cost: Tensor | None, tau: float):
    cross_entropy = torch.tensor(1.5)
    assert local_loss(cross_entropy, cost, tau) is cross_entropy
