"""The local loss: cross-entropy of a stage's auxiliary classifier, and how far the stage moves its input.

Trained greedily, an early stage throws away what a later one needs. Charging it for the distance it moves its input
keeps the information; the charge weighs 1/(2 tau).

Source: Karkar et al. 2022, arXiv:2210.00949, and the authors' scripts, which settle the mean over features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distblock.codecs.cast import Features
from distblock.learning.network import main_tensor


def transport_cost(residuals: Sequence[Tensor]) -> Tensor:
    r"""How far a stage's blocks move their input: the kinetic energy of the stage.

    A residual block takes a step :math:`x_{m+1} = x_m + r_m(x_m)`. Penalising the steps keeps an early stage
    from destroying information that a later one needs.

    Args:
        residuals: ``r_m(x_m)`` of each block in forward order, each ``(N, C_m, H_m, W_m)`` or of any other shape.

    Returns:
        Scalar float32 (float64 for float64), differentiable: mean over samples and features, sum over blocks.

    Raises:
        ValueError: there are no residuals.

    Note:
        The paper sums over features; the authors' scripts take the mean, and their tau values assume it. So do we.

    Source: Karkar et al. 2022, arXiv:2210.00949.
    """
    if not residuals:
        raise ValueError("expected the residual of at least one block, got none")
    return torch.stack([_mean_square(residual) for residual in residuals]).sum()


def stage_transport_cost(entering: Features, leaving: Features, residuals: Sequence[Tensor]) -> Tensor | None:
    """The transport cost of a stage, residual or not.

    Args:
        entering: what enters the stage.
        leaving: what leaves it.
        residuals: what its blocks hand out.

    Returns:
        `transport_cost` where there are residuals; else ``mean((T(z) - z)^2)`` of the main tensors where their shapes
        agree (as for VGG in the scripts); else None.
    """
    if residuals:
        return transport_cost(residuals)
    before, after = main_tensor(entering), main_tensor(leaving)
    if before.shape != after.shape or not before.is_floating_point():
        return None
    return _mean_square(after - before)


def stage_tau(tau: float, *, varying: bool, stage: int, num_stages: int) -> float:
    """A stage's tau; varying: half of it in the first half of the stages (the middle one of an odd number included)."""
    if varying and 2 * stage < num_stages:
        return tau / 2
    return tau


def local_loss(cross_entropy: Tensor, cost: Tensor | None, tau: float) -> Tensor:
    """``cross_entropy + cost / (2 tau)``; without cost, or with tau = inf (greedy), the cross-entropy alone."""
    if cost is None or math.isinf(tau):
        return cross_entropy
    return cross_entropy + cost / (2 * tau)


def _mean_square(tensor: Tensor) -> Tensor:
    # A mean of bf16 squares would lose the small ones.
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return wide.square().mean()
