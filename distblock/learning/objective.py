"""The local loss: cross-entropy of the stage's own classifier, and what it costs to move the features.

A stage trained greedily keeps only what its own classifier needs; later stages then have nothing to work with. The
transport cost makes it move its input as little as the classifier allows.

Source: Karkar et al. 2022, arXiv:2210.00949.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    costs: list[Tensor] = [_MeanSquare.apply(residual) for residual in residuals]
    return torch.stack(costs).sum() if len(costs) > 1 else costs[0]


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


class Multiplier:
    """Lambda, which tunes tau by itself: the loss is ``cross_entropy + cost / lambda``, and lambda grows while the
    cross-entropy is large, so that a stage that cannot yet classify is held back less.

    Args:
        start: lambda_0, at the start of every lap.
        step: what the cross-entropy is multiplied by before it is added.
        every: updates between two additions.

    Source: method of multipliers (Uzawa), as in the scripts of Karkar et al. 2022; the paper's text weighs the loss
    instead (``lambda * cross_entropy + cost``), which differs by the factor lambda.
    """

    def __init__(self, *, start: float, step: float, every: int) -> None:
        self._start = start
        self._step = step
        self._every = every
        self.value = start

    def begin_lap(self) -> None:
        """Lambda starts anew; the optimizer's momentum lives on."""
        self.value = self._start

    def update(self, num_updates: int, cross_entropy: float) -> None:
        """Raise lambda, where it is time: called with each batch's first cross-entropy, before its loss is formed.

        Args:
            num_updates: optimizer steps of the lap before this one.
            cross_entropy: mean over samples.
        """
        if num_updates and num_updates % self._every == 0:
            self.value += self._step * cross_entropy


def multiplier_start(start: float, *, power: float, stage: int) -> float:
    """Where a stage's lambda begins: ``lambda_0 * k^p`` for stage k >= 1, and ``lambda_0`` for stage 0."""
    return start * stage**power if stage else start


def local_loss(cross_entropy: Tensor, cost: Tensor | None, tau: float) -> Tensor:
    """``cross_entropy + cost / (2 tau)``; without a cost, or with infinite tau, the cross-entropy itself."""
    # 0 * cost would be the same number, but its gradients are NaN where the cost overflows.
    if cost is None or math.isinf(tau):
        return cross_entropy
    return cross_entropy + cost / (2 * tau)


class _MeanSquare(torch.autograd.Function):
    """What ``square().mean()`` is; autograd's own goes through a large residual eight times, this one three times."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor) -> Tensor:
        """Within some 1e-5, since sums are of whole samples; the gradient does not depend on it."""
        ctx.save_for_backward(residual)
        norms = torch.linalg.vector_norm(residual, dim=tuple(range(1, residual.ndim)) or None, dtype=_exact(residual))
        return norms.square().sum() / max(1, residual.numel())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """``2 r / n``, times what comes."""
        (residual,) = ctx.saved_tensors
        return (residual.to(_exact(residual)) * (gradients[0] * (2 / max(1, residual.numel())))).to(residual.dtype)


def _exact(residual: Tensor) -> torch.dtype:
    """Under autocast residuals are bf16, whose eight bits are too few for a mean over a million squares."""
    return torch.promote_types(residual.dtype, torch.float32)
