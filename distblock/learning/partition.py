"""Blocks to stages.

Cuts follow from counted work, never from a stopwatch, so that the same settings give the same stages everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from distblock.codecs.cast import Features
from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.learning.network import Block


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Where a network is cut.

    Attributes:
        cuts: index of each stage's first block, from the second stage on.
        num_blocks: blocks of the network.
    """

    cuts: tuple[int, ...]
    num_blocks: int

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.cuts) + 1

    @property
    def stages(self) -> tuple[range, ...]:
        """The blocks of each stage."""
        bounds = (0, *self.cuts, self.num_blocks)
        return tuple(range(start, stop) for start, stop in pairwise(bounds))


def make_partition(config: ModelConfig, costs: Sequence[int]) -> Partition:
    """Cut as the settings say: explicit cuts, a number of stages balanced by cost, or a block a stage.

    Args:
        config: ``cuts`` and ``stages``.
        costs: of each block, counted.

    Raises:
        InputError: the cuts, or the number of stages, do not fit the number of blocks.
    """
    num_blocks = len(costs)
    if config.cuts is not None:
        _check_cuts(config.cuts, num_blocks)
        return Partition(cuts=config.cuts, num_blocks=num_blocks)
    if config.stages == "blocks":
        return Partition(cuts=tuple(range(1, num_blocks)), num_blocks=num_blocks)
    if config.stages > num_blocks:
        raise InputError(
            f"model.stages: expected at most one stage a block, got {config.stages} stages for {num_blocks} blocks of"
            f" {config.name}; set --model.stages {num_blocks} or less"
        )
    return Partition(cuts=balance(costs, config.stages), num_blocks=num_blocks)


def balance(costs: Sequence[int], num_parts: int) -> tuple[int, ...]:
    """Cut a row of costs into non-empty parts so that the largest part is as small as can be.

    Args:
        costs: at least ``num_parts`` of them.
        num_parts: how many parts.

    Returns:
        The index of each part's first element, from the second part on. Among equals, the earliest cuts.
    """
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # best[i]: the smallest largest part of the elements from i on, in the number of parts of the round, and its cuts.
    best: dict[int, tuple[int, tuple[int, ...]]] = {start: (sums[-1] - sums[start], ()) for start in range(len(costs))}
    for parts in range(2, num_parts + 1):
        best = {
            start: min(
                (max(sums[cut] - sums[start], best[cut][0]), (cut, *best[cut][1]))
                for cut in range(start + 1, len(costs) - parts + 2)
            )
            for start in range(len(costs) - parts + 1)
        }
    return best[0][1]


def count_costs(blocks: Sequence[Block], example: Features) -> list[int]:
    """Floating-point operations of each block's forward pass on the example, at least 1; the same on every machine."""
    costs = []
    with torch.no_grad():
        for block in blocks:
            with FlopCounterMode(display=False) as counter:
                example, _ = block.run(example)
            costs.append(max(1, counter.get_total_flops()))
    return costs


def _check_cuts(cuts: Sequence[int], num_blocks: int) -> None:
    if len(cuts) >= num_blocks:
        raise InputError(f"model.cuts: expected at most {num_blocks - 1} cuts for {num_blocks} blocks, got {len(cuts)}")
    if list(cuts) != sorted(set(cuts)):
        raise InputError(f"model.cuts: expected ascending block indices, got {list(cuts)}")
    if cuts and cuts[-1] >= num_blocks:
        raise InputError(
            f"model.cuts: expected block indices from 1 to {num_blocks - 1} ({num_blocks} blocks), got {cuts[-1]}"
        )
