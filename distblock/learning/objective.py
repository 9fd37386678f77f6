"""The local loss: cross-entropy of the stage's own classifier, and what it costs to move the features.

A stage trained greedily keeps only what its own classifier needs; later stages then have nothing to work with. The
transport cost makes it move its input as little as the classifier allows.

Source: Karkar et al. 2022, arXiv:2210.00949.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distblock.learning.network import Features, main_tensor


def transport_cost(residuals: Sequence[Tensor]) -> Tensor:
    r"""How far a stage's blocks move their input: the kinetic energy of the stage.

    A residual block takes a step :math:`x_{m+1} = x_m + r_m(x_m)`. Penalising the steps keeps an early stage
    from destroying information that a later one needs.

    Args:
        residuals: ``r_m(x_m)`` of each block in forward order, each ``(N, ...)``.

    Returns:
        Scalar, differentiable: mean over samples and features, sum over blocks; at least in fp32.

    Raises:
        ValueError: there are no residuals.

    Note:
        The paper sums over features; the authors' scripts take the mean, and their tau values assume it. So do we.

    Source: Karkar et al. 2022, arXiv:2210.00949.
    """
    if not residuals:
        raise ValueError("transport_cost: expected the residuals of at least one block, got none")
    return torch.stack([_mean_square(residual) for residual in residuals]).sum()


def stage_transport_cost(entering: Features, leaving: Features, residuals: Sequence[Tensor]) -> Tensor | None:
    """The transport cost of a stage, residual or not.

    Args:
        entering: what enters the stage, z.
        leaving: what leaves it, T(z).
        residuals: what its blocks handed out, if any did.

    Returns:
        The sum over residuals; without any, ``mean((T(z) - z)^2)`` where the shapes agree; else None.
    """
    if residuals:
        return transport_cost(residuals)
    before, after = main_tensor(entering), main_tensor(leaving)
    if before.shape != after.shape:
        return None
    return transport_cost([after - before])


def stage_tau(tau: float, *, varying: bool, stage: int, num_stages: int) -> float:
    """Tau of one stage: all alike, or (``varying``) half of it in the first half of the stages.

    The middle one of an odd number of stages, and so a single stage, belongs to the second half.
    """
    return tau / 2 if varying and stage < num_stages // 2 else tau


def local_loss(cross_entropy: Tensor, cost: Tensor | None, tau: float) -> Tensor:
    """``cross_entropy + cost / (2 tau)``; without a cost, or with infinite tau, the cross-entropy itself."""
    # 0 * cost would be the same number, but its gradients are NaN where the cost overflows.
    if cost is None or math.isinf(tau):
        return cross_entropy
    return cross_entropy + cost / (2 * tau)


def _mean_square(tensor: Tensor) -> Tensor:
    # Under autocast residuals are bf16, whose eight bits are too few for a mean over a million squares.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).square().mean()
