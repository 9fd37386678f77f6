"""What each block takes on this machine: seconds, bytes that cross behind it, bytes kept for its backward pass.

A stage's step is its blocks' passes forward and backward and its auxiliary classifier's. The first block of a stage
needs no gradient of its input, the others do, which is up to a third of a block's time: so both are measured. Where
several workers share a node's memory bandwidth and caches, a step takes longer than alone; so as many processes as
will compute at once measure at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors, num_bytes, rebuild
from distblock.codecs.edge import EdgeCodec, Microbatch, kept_sample_bytes
from distblock.codecs.staging import Staging
from distblock.config import ChannelConfig, Codec, Config
from distblock.learning.allocator import children_keep_memory
from distblock.learning.blueprint import Build, Problem, classifier_of, network
from distblock.learning.network import Block, detach, main_tensor, run_blocks
from distblock.learning.objective import local_loss, stage_transport_cost
from distblock.learning.optimizer import build_optimizer
from distblock.learning.precision import computing_in
from distblock.messages import Item
from distblock.planning.processes import ended_is_told

REPEATS = 7
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class BlockProfile:
    """One block, at one size of microbatch; the step of its optimizer counts with it.

    Attributes:
        name: in the network.
        first_s, inner_s: of a step where the block is its stage's first, and where a block before it needs a gradient.
        classifier_s: of an auxiliary classifier that sees its output.
        leaving_bytes: of its output, as it is.
        state_bytes, classifier_state_bytes: weights, gradients and what the optimizer keeps.
        saved_bytes, classifier_saved_bytes: kept from the pass forward for the pass backward.
    """

    name: str
    first_s: float
    inner_s: float
    classifier_s: float
    leaving_bytes: int
    state_bytes: int
    classifier_state_bytes: int
    saved_bytes: int
    classifier_saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class CodecProfile:
    """What a codec takes for a byte of activations as they are.

    Attributes:
        encode_s, decode_s: seconds.
        share: bytes on the wire.
        kept_share: bytes that each end keeps.
    """

    encode_s: float
    decode_s: float
    share: float
    kept_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A network on a machine.

    Attributes:
        blocks: in forward order.
        codecs: by name.
        num_samples: of the microbatch.
        entering_bytes: of the images of a microbatch.
    """

    blocks: tuple[BlockProfile, ...]
    codecs: dict[str, CodecProfile]
    num_samples: int
    entering_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a measuring process is told."""

    config: Config
    problem: Problem
    build: Build | None
    codecs: tuple[Codec, ...]
    repeats: int


def profile(
    config: Config,
    problem: Problem,
    *,
    build: Build | None = None,
    codecs: Sequence[Codec] = ("fp32",),
    processes: int = 1,
    repeats: int = REPEATS,
) -> Profile:
    """Measure a network's blocks.

    Args:
        config: the settings; its device, precision, threads and microbatch count.
        problem: what the network is built for.
        build: the user's own network.
        codecs: which to measure, on the middle block's output.
        processes: that measure at once; their mean counts.
        repeats: steps of each, of which the median counts.

    Raises:
        RunFailedError: a process was ended from outside.
    """
    task = _Task(config=config, problem=problem, build=build, codecs=tuple(codecs), repeats=repeats)
    if processes == 1:
        return _measure(task)
    with (
        ended_is_told("profiled the network"),
        children_keep_memory(),
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        return _mean(list(pool.map(_measure, [task] * processes)))


def _mean(profiles: Sequence[Profile]) -> Profile:
    def seconds(values: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
        return {name: statistics.mean(getattr(each, name) for each in values) for name in names}

    blocks = [
        replace(each[0], **seconds(each, ("first_s", "inner_s", "classifier_s")))
        for each in zip(*(profile.blocks for profile in profiles), strict=True)
    ]
    codecs = {
        name: replace(own, **seconds([each.codecs[name] for each in profiles], ("encode_s", "decode_s")))
        for name, own in profiles[0].codecs.items()
    }
    return replace(profiles[0], blocks=tuple(blocks), codecs=codecs)


def _measure(task: _Task) -> Profile:
    torch.set_num_threads(task.config.resources.threads_per_worker)
    device = torch.device("cuda" if task.config.resources.gpus_per_worker > 0 else "cpu")
    blocks = network(task.config, task.problem, task.build)
    size = (task.problem.in_channels, task.problem.image_size, task.problem.image_size)
    count = task.config.data.train_microbatch
    features: Features = torch.randn(count, *size, device=device)
    entering_bytes = num_bytes(features)
    measured, outputs = [], []
    for block in blocks:
        step = _Step(task, block, features, device)
        measured.append(step.profile())
        outputs.append(features := step.leaving)
    middle = outputs[len(outputs) // 2]
    return Profile(
        blocks=tuple(measured),
        codecs={
            codec: measure_codec(codec, middle, channel=task.config.channel, repeats=task.repeats)
            for codec in task.codecs
        },
        num_samples=count,
        entering_bytes=entering_bytes,
    )


class _Step:
    """Steps of one block, and of a classifier that sees its output, each by itself."""

    def __init__(self, task: _Task, block: Block, entering: Features, device: torch.device) -> None:
        self._task = task
        self._block = block
        self._entering = entering
        self._device = device
        module = nn.ModuleList([each for _, each in block.modules]).to(device).train()
        with torch.no_grad(), self._computing():
            self.leaving = detach(run_blocks([block], entering)[0])
        shape = tuple(main_tensor(self.leaving).shape[1:])
        self._classifier = classifier_of(task.config, task.problem, shape).to(device).train()
        self._labels = torch.zeros(len(main_tensor(entering)), dtype=torch.int64, device=device)
        self._own = _Optimized(module, task.config)
        self._of_classifier = _Optimized(self._classifier, task.config)
        self._gradient = torch.randn_like(main_tensor(self.leaving)) * 1e-3

    def profile(self) -> BlockProfile:
        saved, classifier_saved = _saved_bytes(lambda: self._run(False)), _saved_bytes(self._classify)
        return BlockProfile(
            name=self._block.name,
            first_s=self._seconds(lambda: self._run(False)),
            inner_s=self._seconds(lambda: self._run(True)),
            classifier_s=self._seconds(self._classify),
            leaving_bytes=num_bytes(self.leaving),
            state_bytes=self._own.state_bytes,
            classifier_state_bytes=self._of_classifier.state_bytes,
            saved_bytes=saved,
            classifier_saved_bytes=classifier_saved,
        )

    def _computing(self) -> torch.autocast:
        return computing_in(self._task.config.precision, self._device.type)

    def _run(self, needs_gradient: bool) -> None:
        entering = _fresh(self._entering, needs_gradient)
        with self._computing():
            leaving, residuals = run_blocks([self._block], entering)
        cost = stage_transport_cost(entering, leaving, residuals)
        aim = (main_tensor(leaving) * self._gradient).sum()
        loss = local_loss(aim, cost, self._task.config.objective.tau)
        # A block without weights has nothing to learn where nothing comes before it.
        if loss.requires_grad:
            loss.backward()
        self._own.step()

    def _classify(self) -> None:
        with self._computing():
            logits = self._classifier(main_tensor(_fresh(self.leaving, True)))
        nn.functional.cross_entropy(logits.float(), self._labels).backward()
        self._of_classifier.step()

    def _seconds(self, step: Callable[[], None]) -> float:
        taken = []
        for _ in range(WARM_UP + self._task.repeats):
            begun_s = time.perf_counter()
            step()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            taken.append(time.perf_counter() - begun_s)
        return statistics.median(taken[WARM_UP:])


class _Optimized:
    """A module with an optimizer of its own."""

    def __init__(self, module: nn.Module, config: Config) -> None:
        parameters = list(module.parameters())
        self._optimizer = build_optimizer(parameters, config.optimizer) if parameters else None
        copies = 4 if config.optimizer.name == "adam" else 3 if config.optimizer.momentum else 2
        weights = sum(each.numel() * each.element_size() for each in parameters)
        buffers = sum(each.numel() * each.element_size() for each in module.buffers())
        self.state_bytes = copies * weights + buffers

    def step(self) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()


def _fresh(features: Features, needs_gradient: bool) -> Features:
    return rebuild(
        {
            key: tensor.detach().requires_grad_(needs_gradient and tensor.is_floating_point())
            for key, tensor in named_tensors(features)
        }
    )


def _saved_bytes(step: Callable[[], None]) -> int:
    """Of the storages that a pass forward keeps for the pass backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def measure_codec(
    name: Codec, features: Features, *, channel: ChannelConfig | None = None, repeats: int = REPEATS
) -> CodecProfile:
    """What a codec takes at both ends: medians of a microbatch's later crossings.

    Args:
        name: the codec.
        features: what crosses.
        channel: settings of codecs; none: as they are by default.
        repeats: crossings that count.
    """
    channel = (channel or ChannelConfig()).model_copy(update={"codec": name, "edge_codecs": {}})
    count = len(main_tensor(features))
    staging = Staging(main_tensor(features).device)
    ends = [EdgeCodec(channel, run="plan", edge=1, seed=0, staging=staging) for _ in range(2)]
    labels = torch.zeros(count, dtype=torch.int64)
    encoded, decoded, share = [], [], 1.0
    for number in range(WARM_UP + repeats):
        microbatch = _microbatch(number, count, names_samples=ends[0].remembers)
        begun_s = time.perf_counter()
        payload = ends[0].encode(features, labels, microbatch)
        between_s = time.perf_counter()
        ends[1].decode(payload, microbatch)
        encoded.append(between_s - begun_s)
        decoded.append(time.perf_counter() - between_s)
        share = payload.wire_bytes / payload.payload_bytes
    size = num_bytes(features)
    return CodecProfile(
        encode_s=statistics.median(encoded[WARM_UP:]) / size,
        decode_s=statistics.median(decoded[WARM_UP:]) / size,
        share=share,
        kept_share=_kept_bytes(features) / size if name in ChannelConfig.KEEPING else 0.0,
    )


def _kept_bytes(features: Features) -> int:
    tensors = [tensor for _, tensor in named_tensors(features)]
    return kept_sample_bytes([tuple(tensor.shape) for tensor in tensors if tensor.is_floating_point()])


def _microbatch(number: int, count: int, *, names_samples: bool) -> Microbatch:
    item = replace(Item.of_batch(number, count), epoch=number, index=0)
    return Microbatch(item=item, samples=np.arange(count, dtype=np.int32) if names_samples else None)
