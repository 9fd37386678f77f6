"""Consecutive stages in one process, and a microbatch's way through them.

A worker hosts one stage or several; the plain loop hosts all. Both go through here, so that their numbers cannot
differ: features pass from stage to stage through the same codec whether or not they leave the process.
"""

from __future__ import annotations

import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distblock.codecs.cast import Features, num_bytes, round_trip
from distblock.config import Config
from distblock.errors import StageError
from distblock.learning.blueprint import Blueprint, Build, Problem, classifier_of, network
from distblock.learning.initialization import initialize
from distblock.learning.network import Block
from distblock.learning.stage import Stage
from distblock.messages import Arrival, Departure, Item, StageReport
from distblock.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """All that a process needs to build its stages; small enough to travel.

    Attributes:
        run: the run's name.
        config: its settings.
        problem: what the network is built for.
        blueprint: where it is cut.
        stages: the stages hosted here.
        steps_per_epoch: optimizer steps an epoch.
        build: the user's own network, where it was given in Python.
    """

    run: str
    config: Config
    problem: Problem
    blueprint: Blueprint
    stages: range
    steps_per_epoch: int
    build: Build | None

    @property
    def device(self) -> torch.device:
        """Where the stages live."""
        return torch.device("cuda" if self.config.resources.gpus_per_worker > 0 else "cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What came of one microbatch.

    Attributes:
        features: the last hosted stage's output, detached.
        reports: a report per hosted stage.
        arrivals, departures: the hops between hosted stages.
    """

    features: Features
    reports: tuple[StageReport, ...]
    arrivals: tuple[Arrival, ...]
    departures: tuple[Departure, ...]


class Host:
    """The hosted stages.

    Args:
        spec: what to build.
        clock: seconds from any start; measures computing.
    """

    def __init__(self, spec: HostSpec, *, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.device = spec.device
        self._clock = clock
        self.stages = build_stages(spec)

    def work(self, item: Item, features: Features, labels: Tensor) -> Work:
        """Pass a microbatch through the hosted stages, each training or evaluating.

        Raises:
            StageError: a stage failed; it names the stage, the microbatch and the cause.
        """
        reports, arrivals, departures = [], [], []
        for stage in self.stages:
            if reports:
                features, arrival, departure = self._hop(stage.index, features)
                arrivals.append(arrival)
                departures.append(departure)
            features, report = self._work_one(stage, item, features, labels)
            reports.append(report)
        return Work(features=features, reports=tuple(reports), arrivals=tuple(arrivals), departures=tuple(departures))

    def peak_memory_bytes(self) -> int:
        """Largest number so far: allocated on the device, or resident in this process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _work_one(self, stage: Stage, item: Item, features: Features, labels: Tensor) -> tuple[Features, StageReport]:
        begun_s = self._clock()
        try:
            if item.purpose == "train":
                features, measures = stage.train(item, features, labels)
            else:
                features, measures = stage.evaluate(features, labels)
        except Exception as error:
            raise StageError(stage.index, str(item), explain(error)) from error
        return features, StageReport(
            stage=stage.index,
            loss_sum=measures.loss_sum,
            transport_cost_sum=measures.transport_cost_sum,
            num_correct=measures.num_correct,
            num_samples=item.num_samples,
            compute_s=self._clock() - begun_s,
            lr=measures.lr,
        )

    def _hop(self, edge: int, features: Features) -> tuple[Features, Arrival, Departure]:
        begun_s = self._clock()
        passed = round_trip(features, codec=self.spec.config.channel.codec)
        departure = Departure(
            edge=edge,
            payload_bytes=num_bytes(features),
            wire_bytes=0,
            encode_s=self._clock() - begun_s,
            put_s=0.0,
        )
        return passed, Arrival(edge=edge, fetch_s=0.0, decode_s=0.0, exposed_s=0.0), departure


def build_stages(spec: HostSpec) -> list[Stage]:
    """The hosted stages, initialized: the whole network is built, so that everyone's weights come from one place, and
    the blocks of others are dropped."""
    blocks = network(spec.config, spec.problem, spec.build)
    return [_build_stage(spec, index, blocks) for index in spec.stages]


def explain(error: BaseException) -> str:
    """An exception in one line: its class, its message, and the line of code where it is not torch's."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    if own and not isinstance(error, FloatingPointError):
        text += f" ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})"
    return text


def _build_stage(spec: HostSpec, index: int, blocks: list[Block]) -> Stage:
    blocks_of_stage = spec.blueprint.partition.stages[index]
    own = blocks[blocks_of_stage.start : blocks_of_stage.stop]
    classifier = classifier_of(spec.config, spec.problem, spec.blueprint.classified[index])
    model = spec.config.model
    how = "orthogonal" if model.initialization in ("auto", "built") else model.initialization
    initialize(classifier, how, gain=model.gain, seed=derive_seed(spec.config.seed, "classifier", index))
    return Stage(
        index=index,
        num_stages=spec.blueprint.num_stages,
        blocks=own,
        classifier=classifier,
        config=spec.config,
        steps_per_epoch=spec.steps_per_epoch,
        device=spec.device,
    )
