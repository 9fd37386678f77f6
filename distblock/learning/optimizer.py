"""One optimizer a stage, and the course of its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from distblock.config import OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer of one stage's parameters."""
    if config.name == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def lr_factor(step: int, config: OptimizerConfig, *, warmup_steps: int, num_steps: int) -> float:
    """What the highest learning rate is multiplied by at a step.

    A linear rise over ``warmup_steps`` (the first step takes ``1 / warmup_steps``), then by ``config.schedule``:
    half a cosine from 1 to 0 over the remaining steps (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts),
    a factor at each milestone (a share of the whole run), or constant.

    Args:
        step: steps taken before this one.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "cosine":
        done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "step":
        passed = sum(step >= milestone * num_steps for milestone in config.milestones)
        return config.step_factor**passed
    return 1.0
