"""Blocks to stages, by cost and never by a stopwatch, and the trial run that finds misfits before anything starts.

A stage that costs most sets the pace of the whole pipeline, so a balanced partition makes the largest cost as small as
can be. Costs are counted operations: equal on every machine, so that equal settings give equal stages everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.learning.network import Block, Features
from distblock.learning.trial import trial, try_block

OPERATIONS_PER_ELEMENT = 96
"""What writing an element costs beside computing. Normalization and ReLU compute next to nothing and wait for memory;
by products alone, a stage of wide maps early in ResNet-20 is half as slow again as its partner. Fitted to steps of
ResNet-20, ResNet-18 and ResNet-110 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Where a network is cut.

    Attributes:
        cuts: index of each stage's first block, from the second stage on; ascending.
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

    def stage_of(self, block: int) -> int:
        """The stage that a block belongs to."""
        return sum(cut <= block for cut in self.cuts)


def make_partition(config: ModelConfig, costs: Sequence[int]) -> Partition:
    """The partition that ``config.stages`` or ``config.cuts`` asks for.

    Args:
        config: ``stages``: one block each, or a number, balanced; or else explicit ``cuts``.
        costs: of each block, as `count_costs` gives them.

    Raises:
        InputError: there are fewer blocks than stages, or the cuts do not ascend within the network.
    """
    num_blocks = len(costs)
    if config.cuts is not None:
        return Partition(cuts=_checked(config.cuts, num_blocks), num_blocks=num_blocks)
    if config.stages == "blocks":
        return Partition(cuts=tuple(range(1, num_blocks)), num_blocks=num_blocks)
    if config.stages == "auto":
        raise InputError("model.stages: expected a plan in place of auto; run distblock plan and take its cuts")
    if config.stages > num_blocks:
        raise InputError(
            f"model.stages: expected at most one stage a block, got {config.stages} stages for a network of"
            f" {num_blocks} blocks; set --model.stages {num_blocks} or choose a deeper network"
        )
    return Partition(cuts=balance(costs, config.stages), num_blocks=num_blocks)


def _checked(cuts: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in pairwise(cuts)):
        raise InputError(f"model.cuts: expected ascending numbers, got {list(cuts)}; sort them and drop repeated ones")
    if cuts and cuts[-1] >= num_blocks:
        raise InputError(
            f"model.cuts: expected numbers from 1 to {num_blocks - 1}, since the network has {num_blocks} blocks, got"
            f" {cuts[-1]}; lower or drop it"
        )
    return cuts


def balance(costs: Sequence[int], num_parts: int) -> tuple[int, ...]:
    """Cut a sequence into runs so that the largest summed cost is as small as can be.

    Of several such ways, the one with the earliest first cut, then the earliest second, and so on.

    Args:
        costs: at least ``num_parts`` of them.
        num_parts: runs, none of them empty.

    Returns:
        Index of the first element of each run, from the second run on.
    """
    sums = [0, *accumulate(costs)]
    smallest = _smallest_largest(sums, num_parts)
    limit = smallest[num_parts][0]
    cuts: list[int] = []
    start = 0
    for parts_left in range(num_parts - 1, 0, -1):
        start = next(
            cut
            for cut in range(start + 1, len(costs))
            if max(sums[cut] - sums[start], smallest[parts_left][cut]) <= limit
        )
        cuts.append(start)
    return tuple(cuts)


def _smallest_largest(sums: Sequence[int], num_parts: int) -> list[list[float]]:
    """``[p][i]``: smallest possible largest cost of elements i.. cut into p runs; infinite where there are too few.

    Args:
        sums: ``sums[i]`` is the cost of the first i elements.
        num_parts: largest p.
    """
    count = len(sums) - 1
    table: list[list[float]] = [[float("inf")] * count + [0.0]]
    for parts in range(1, num_parts + 1):
        rest = table[parts - 1]
        row = [
            min((max(sums[cut] - sums[start], rest[cut]) for cut in range(start + 1, count + 1)), default=float("inf"))
            for start in range(count + 1)
        ]
        table.append(row)
    return table


def count_costs(blocks: Sequence[Block], example: Features) -> list[int]:
    """What each block's forward pass on an example costs, in floating-point operations, at least 1 each.

    Counted, not timed, so the same on every machine: by torch's own formulas what convolutions and products of matrices
    compute; to that comes what every operation writes (`OPERATIONS_PER_ELEMENT`).

    Args:
        blocks: in forward order, on the CPU.
        example: what enters the first; two samples will do.
    """
    costs = []
    features = example
    with trial(blocks):
        for block in blocks:
            with _Counter() as counter:
                features, _ = block.run(features)
            costs.append(max(1, counter.operations + OPERATIONS_PER_ELEMENT * counter.elements))
    return costs


class _Counter(TorchDispatchMode):
    """Counts floating-point operations, and elements of the tensors that are made; views make none.

    torch's FlopCounterMode would import torch's compiler with the first operation that it sees: two seconds of every
    run's start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.elements = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and the compiler need not be told so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            # In inference mode what is made of others, such as a linear layer, arrives as one.
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=made)
        if not func.is_view:
            self.elements += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


def check_shapes(blocks: Sequence[Block], example: Features, *, partition: Partition | None = None) -> list[Features]:
    """Run an example through the blocks in training mode, one after the other.

    Weights, statistics and modes are afterwards as they were before.

    Args:
        blocks: in forward order, on the CPU.
        example: what enters the first; two samples will do.
        partition: where the network is cut, if errors are to name the stage too.

    Returns:
        What leaves each block.

    Raises:
        InputError: a block fails on what it receives, writes to it in place, or puts out something else than tensors of
            as many samples; it names the stage, the block, what was expected and what was received.
    """
    outputs = []
    features = example
    with trial(blocks):
        for index, block in enumerate(blocks):
            stage = "" if partition is None else f"stage {partition.stage_of(index)}, "
            features = try_block(block, f"{stage}block {index} ({block.name})", features)
            outputs.append(features)
    return outputs
