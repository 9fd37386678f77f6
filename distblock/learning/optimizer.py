"""One optimizer a stage, and the course of its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from distblock.config import OptimizerConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, *, steps_per_epoch: int, num_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """An optimizer and its schedule.

    Args:
        parameters: those of one stage.
        config: the settings.
        steps_per_epoch: optimizer steps an epoch; turns ``warmup_epochs`` into steps.
        num_steps: optimizer steps of the whole run.
    """
    optimizer = _optimizer(list(parameters), config)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        return lr_factor(step, config, warmup_steps=warmup_steps, num_steps=num_steps)

    return optimizer, LambdaLR(optimizer, factor)


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


def _optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
        )
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
