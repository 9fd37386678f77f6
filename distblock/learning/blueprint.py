"""What is known of a run before any worker starts: where the network is cut, what crosses each cut, who hosts what.

A mismatch of shapes found by a worker, minutes after the start, names a kernel; found here, on two samples, it names
the stage, the block and the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors
from distblock.config import Config
from distblock.errors import InputError
from distblock.learning.auxiliary import build_classifier
from distblock.learning.models import Build, build_network
from distblock.learning.network import Block, check_ownership, main_tensor
from distblock.learning.partition import Partition, balance, check_shapes, count_costs, make_partition

LABEL_BYTES = 8
SAMPLES = 2
"""Samples of the trial run."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a network is built for.

    Attributes:
        in_channels: channels of an image.
        image_size: its side.
        num_classes: classes to tell apart.
    """

    in_channels: int
    image_size: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The plan of a run's network; small, and the same on every machine.

    Attributes:
        partition: blocks to stages.
        block_names: name of every block.
        hosts: the stages of each worker.
        entering: for each stage, the shape of one sample of each tensor that enters it.
        classified: for each stage, the shape of one sample of what its auxiliary classifier sees.
        sample_bytes: for each stage, bytes a sample that enters it takes on the wire at most, its label included.
        num_parameters: of each stage, its auxiliary classifier included.
        state_shapes: shape of every weight and buffer of each stage, by name.
    """

    partition: Partition
    block_names: tuple[str, ...]
    hosts: tuple[range, ...]
    entering: tuple[tuple[tuple[int, ...], ...], ...]
    classified: tuple[tuple[int, ...], ...]
    sample_bytes: tuple[int, ...]
    num_parameters: tuple[int, ...]
    state_shapes: tuple[Mapping[str, tuple[int, ...]], ...]

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return self.partition.num_stages


def draw_blueprint(config: Config, problem: Problem, *, build: Build | None = None) -> Blueprint:
    """Build the network once, run two samples through it, and plan the run.

    Args:
        config: the run's settings.
        problem: what the network is built for.
        build: the user's own network, instead of ``config.model.name``.

    Raises:
        InputError: the network, its partition, its classifiers or the number of workers do not fit.
    """
    blocks = network(config, problem, build)
    check_ownership(blocks)
    example = torch.zeros(SAMPLES, problem.in_channels, problem.image_size, problem.image_size)
    leaving = check_shapes(blocks, example, partition=_known_partition(config, len(blocks)))
    costs = count_costs(blocks, example)
    partition = make_partition(config.model, costs)
    _check_edges(config.channel.edge_codecs, partition)
    _check_frozen(config.model.freeze_before, partition)
    entering = [example, *(leaving[cut - 1] for cut in partition.cuts)]
    classified = tuple(tuple(main_tensor(leaving[stage.stop - 1]).shape[1:]) for stage in partition.stages)
    states = [
        _named_state(blocks[stage.start : stage.stop], classifier_of(config, problem, shape))
        for stage, shape in zip(partition.stages, classified, strict=True)
    ]
    return Blueprint(
        partition=partition,
        block_names=tuple(block.name for block in blocks),
        hosts=_hosts(config, partition, costs),
        entering=tuple(_sample_shapes(features) for features in entering),
        classified=classified,
        sample_bytes=tuple(
            _wire_bytes(features, config.channel.codec_of(edge)) for edge, features in enumerate(entering)
        ),
        num_parameters=tuple(sum(t.numel() for t in state.values() if isinstance(t, nn.Parameter)) for state in states),
        state_shapes=tuple({name: tuple(tensor.shape) for name, tensor in state.items()} for state in states),
    )


def network(config: Config, problem: Problem, build: Build | None, *, needed: range | None = None) -> list[Block]:
    """All blocks of the network, those that are needed (default: all) initialized; the same for everyone with the same
    seed."""
    return build_network(
        config.model,
        in_channels=problem.in_channels,
        image_size=problem.image_size,
        num_classes=problem.num_classes,
        seed=config.seed,
        build=build,
        needed=needed,
    )


def classifier_of(config: Config, problem: Problem, sample_shape: tuple[int, ...]) -> nn.Module:
    """The auxiliary classifier for outputs of this shape a sample, not yet initialized."""
    example = torch.empty(SAMPLES, *sample_shape)
    return build_classifier(config.model.classifier, example, num_classes=problem.num_classes)


def _check_edges(edge_codecs: Mapping[int, str], partition: Partition) -> None:
    unknown = [edge for edge in edge_codecs if edge >= partition.num_stages]
    if unknown:
        raise InputError(
            f"channel.edge_codecs: expected stages from 1 to {partition.num_stages - 1}, which edges enter, got"
            f" {unknown[0]}"
        )


def _check_frozen(freeze_before: int, partition: Partition) -> None:
    if freeze_before > partition.num_stages:
        raise InputError(
            f"model.freeze_before: expected 0 to {partition.num_stages}, which is the number of stages, got"
            f" {freeze_before}"
        )


def _known_partition(config: Config, num_blocks: int) -> Partition | None:
    """The partition, where it does not follow from counted costs."""
    if config.model.cuts is None and config.model.stages not in ("blocks", 1):
        return None
    return make_partition(config.model, [1] * num_blocks)


def _hosts(config: Config, partition: Partition, costs: Sequence[int]) -> tuple[range, ...]:
    num_stages, num_workers = partition.num_stages, config.resources.workers
    if config.executor == "local":
        num_workers = 1
    if num_workers is None:
        num_workers = num_stages
    if num_workers > num_stages:
        raise InputError(
            f"resources.workers: expected at most one worker a stage, got {num_workers} workers for {num_stages}"
            f" stages; set --resources.workers {num_stages} or cut the network into more stages"
        )
    cuts = balance([sum(costs[block] for block in stage) for stage in partition.stages], num_workers)
    bounds = [0, *cuts, num_stages]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def _named_state(blocks: Sequence[Block], classifier: nn.Module) -> dict[str, Tensor]:
    parts = [(f"network.{name}", module) for block in blocks for name, module in block.modules]
    state: dict[str, Tensor] = {}
    for name, module in [*parts, ("classifier", classifier)]:
        state |= {f"{name}.{key}": tensor for key, tensor in module.state_dict(keep_vars=True).items()}
    return state


def _sample_shapes(features: Features) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for _, tensor in named_tensors(features))


def _wire_bytes(features: Features, codec: str) -> int:
    per_value = {"fp32": 4, "fp16": 2, "bf16": 2}.get(codec, 1)
    sizes = (
        min(t.element_size(), per_value) if t.is_floating_point() else t.element_size()
        for _, t in named_tensors(features)
    )
    counts = (tensor.numel() // len(tensor) for _, tensor in named_tensors(features))
    return sum(size * count for size, count in zip(sizes, counts, strict=True)) + LABEL_BYTES
