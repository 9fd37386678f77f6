"""One step of training by each kind of rival: a function of a batch that returns losses, where this process has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from distblock.bench.rivals.trials import STAGES_PER_PROCESS, Task, Trial
from distblock.codecs.cast import WIRE_TYPES
from distblock.config import OptimizerConfig
from distblock.learning.host import build_stages
from distblock.learning.optimizer import build_optimizer

Step = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Images ``(N, C, H, W)`` and labels ``(N,)`` to the losses of this process's share, each a mean over samples."""


class Piece(nn.Module):
    """A run of blocks, and the casts at its ends.

    Args:
        modules: in order.
        wire: what it leaves in; None for the network's last piece, whose logits stay fp32.
    """

    def __init__(self, modules: Sequence[nn.Module], wire: torch.dtype | None) -> None:
        super().__init__()
        self.modules_in_order = nn.Sequential(*modules)
        self._wire = wire

    def forward(self, features: Tensor) -> Tensor:
        """fp32 inside, whatever has come."""
        leaving = self.modules_in_order(features.float())
        return leaving if self._wire is None else leaving.to(self._wire)


def make_step(task: Task, trial: Trial, rank: int) -> Step:
    """A rival's step, with its network as it is before the first one."""
    if trial.kind == "end-to-end":
        [network] = make_pieces(task, trial)
        return train_whole(network, task.config.optimizer)
    return _data_parallel(task, trial, rank) if trial.kind == "DDP" else _pipeline(task, trial, rank)


def make_pieces(task: Task, trial: Trial) -> list[Piece]:
    """The whole network, initialized as distblock's, cut; the classifier belongs to the last piece."""
    [whole] = build_stages(task.spec(), range(1))
    bounds = [0, *trial.cuts, len(whole.blocks)]
    runs = [[module for block in whole.blocks[a:b] for _, module in block.modules] for a, b in pairwise(bounds)]
    runs[-1].append(whole.module["classifier"])
    wires = [WIRE_TYPES[trial.wire]] * (len(runs) - 1) + [None]
    return [Piece(run, wire).train() for run, wire in zip(runs, wires, strict=True)]


def train_whole(network: nn.Module, config: OptimizerConfig) -> Step:
    """Plain training."""
    optimizer = build_optimizer((each for each in network.parameters() if each.requires_grad), config)
    device = next(network.parameters()).device

    def step(images: Tensor, labels: Tensor) -> list[Tensor]:
        loss = cross_entropy(network(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return [loss]

    return step


def _data_parallel(task: Task, trial: Trial, rank: int) -> Step:
    [piece] = make_pieces(task, trial)
    # Each process normalizes by its own samples; the first one's running statistics would be sent out at every step.
    step = train_whole(DistributedDataParallel(piece, broadcast_buffers=False), task.config.optimizer)
    return lambda images, labels: step(*(each.chunk(trial.processes)[rank] for each in (images, labels)))


def _pipeline(task: Task, trial: Trial, rank: int) -> Step:
    pieces = make_pieces(task, trial)
    mine = _stages_of(rank, trial)
    stages = [PipelineStage(pieces[index], index, len(pieces), torch.device("cpu")) for index in mine]
    kind = get_schedule_class(trial.kind)
    held = stages if issubclass(kind, PipelineScheduleMulti) else stages[0]
    schedule = cast(Any, kind)(held, n_microbatches=trial.microbatches, loss_fn=cross_entropy)
    parameters = [parameter for index in mine for parameter in pieces[index].parameters()]
    optimizer = build_optimizer(parameters, task.config.optimizer)

    def step(images: Tensor, labels: Tensor) -> list[Tensor]:
        losses: list[Tensor] = []
        schedule.step(*([images] if 0 in mine else []), target=labels, losses=losses, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()
        return losses

    return step


def _stages_of(rank: int, trial: Trial) -> list[int]:
    """ZBV lays its stages out in a V, so that the first process has the first and the last; others go around."""
    count = STAGES_PER_PROCESS[trial.kind] * trial.processes
    if trial.kind == "ZBVZeroBubble":
        return [rank, count - 1 - rank]
    return list(range(rank, count, trial.processes))
