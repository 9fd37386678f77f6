"""Consecutive stages in one process, and a microbatch's way through them.

A worker hosts one stage or several; the plain loop hosts all. Both go through here, so that their numbers cannot
differ: features pass from stage to stage through the same codec whether or not they leave the process.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, num_bytes
from distblock.codecs.edge import EdgeCodec, Microbatch
from distblock.codecs.staging import Staging
from distblock.config import Config
from distblock.errors import DeviceLostError, PeerLostError, StageError
from distblock.learning.blueprint import Blueprint, Build, Problem, classifier_of, network
from distblock.learning.initialization import initialize
from distblock.learning.memory import PeakMemory
from distblock.learning.network import Block, blocks_state
from distblock.learning.replicas import AllHere, PeersGoneError, Replicas
from distblock.learning.stage import Measures, Stage
from distblock.messages import Arrival, Departure, Inputs, Item, StageReport
from distblock.seeds import derive_seed

_LAP = "lap "
"""Before the lap's number, in names of frozen copies."""

NOTHING = Measures(loss_sum=0.0, transport_cost_sum=0.0, num_correct=0, lr=None)
"""What a stage finds out that runs forward only."""


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
        inputs: what a stage trains on, where stages train one by one; else None.
        build: the user's own network, where it was given in Python.
        delays_s: seconds by which stages are slowed, a training microbatch: for benchmarks.
    """

    run: str
    config: Config
    problem: Problem
    blueprint: Blueprint
    stages: range
    steps_per_epoch: int
    inputs: Inputs | None
    build: Build | None
    delays_s: Mapping[int, float] = field(default_factory=dict)

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


class Shelf(Protocol):
    """Keeps what is not resident."""

    def put(self, stage: int, state: Mapping[str, Tensor]) -> None:
        """Keep a stage's training state."""
        ...

    def get(self, stage: int) -> Mapping[str, Tensor]:
        """What was put last."""
        ...


class Host:
    """The hosted stages.

    Args:
        spec: what to build.
        clock: seconds from any start; measures computing.
        shelf: where stages lie that are not needed now: with one, only one stage is resident at a time. It takes
            that stages train one by one, on cached inputs.
        replicas: who shares each microbatch with it; default: nobody, and all shares are computed here.

    Attributes:
        edges: the codec of each edge that a hosted stage is at one end of, by the stage that it enters.
    """

    def __init__(
        self,
        spec: HostSpec,
        *,
        clock: Callable[[], float],
        shelf: Shelf | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self.spec = spec
        self.device = spec.device
        if self.device.type == "cuda":
            # Some of cuDNN's ways to a gradient add in whatever order threads come: no two runs would be the same.
            torch.backends.cudnn.deterministic = True
        self._clock = clock
        self._memory = PeakMemory()
        self._shelf = shelf
        self._replicas = replicas or AllHere(spec.config.replicas)
        # On cached inputs, copies are what a lost cache is computed from again.
        rebuilds = spec.inputs == "cache" and spec.config.checkpoint.is_on
        self._keeps_laps = spec.config.regime.name == "wavefront" and (spec.inputs == "frozen" or rebuilds)
        self._frozen: dict[tuple[int, int], tuple[Block, ...]] = {}
        staging = Staging(self.device)
        self.edges = {
            edge: EdgeCodec(spec.config.channel, run=spec.run, edge=edge, seed=spec.config.seed, staging=staging)
            for edge in range(spec.stages.start, min(spec.stages.stop + 1, spec.blueprint.num_stages))
        }
        self._resident = {stage.index: stage for stage in build_stages(spec, spec.stages, self._replicas)}
        if shelf is not None:
            for index in spec.stages[1:]:
                self._put_away(index)

    def stage(self, index: int) -> Stage:
        """A hosted stage, resident now."""
        if index not in self._resident:
            for other in list(self._resident):
                self._put_away(other)
            (stage,) = build_stages(self.spec, range(index, index + 1), self._replicas)
            stage.load_training_state(self._shelved(index))
            self._resident[index] = stage
        return self._resident[index]

    def load(self, state: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Start from these weights: by stage, then by name; others stay."""
        for index in self.spec.stages:
            if index in state:
                self.stage(index).load({name: torch.from_numpy(array.copy()) for name, array in state[index].items()})

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """Weights and buffers, by stage, then by name."""
        return {
            index: {name: tensor.numpy() for name, tensor in self.stage(index).state().items()}
            for index in self.spec.stages
        }

    def training_state(self) -> dict[int, dict[str, np.ndarray]]:
        """All that another host needs to go on from here, as a copy, by stage: its training state,
        ``lap <number>/<name>`` of frozen copies, and ``edge in/<name>`` and ``edge out/<name>`` of what the codecs
        before and behind it remember."""
        return dict(self.training_states())

    def training_states(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The same, a stage at a time."""
        return ((index, self._training_state(index)) for index in self.spec.stages)

    def load_training_state(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Go on from what `training_state` gave; stages of others are passed over."""
        for index in self.spec.stages:
            if index in states:
                self._load_training_state(index, states[index])

    def _training_state(self, index: int) -> dict[str, np.ndarray]:
        stage = self._resident.get(index)
        tensors = stage.training_state() if stage is not None else self._shelved(index)
        state = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        for (owner, lap), blocks in self._frozen.items():
            if owner == index:
                copies = blocks_state(blocks)
                state |= {f"{_LAP}{lap}/{name}": tensor.cpu().numpy().copy() for name, tensor in copies.items()}
        for what, edge in _edges_of(index):
            if edge in self.edges:
                state |= {f"{what}/{name}": array for name, array in self.edges[edge].state().items()}
        return state

    def _load_training_state(self, index: int, state: Mapping[str, np.ndarray]) -> None:
        stage = self.stage(index)
        own: dict[str, Tensor] = {}
        laps: dict[int, dict[str, Tensor]] = {}
        edges = dict(_edges_of(index))
        remembered: dict[int, dict[str, np.ndarray]] = {}
        for key, array in state.items():
            what, _, name = key.partition("/")
            if what in edges:
                remembered.setdefault(edges[what], {})[name] = array
                continue
            tensor = torch.from_numpy(array.copy())
            if what.startswith(_LAP):
                laps.setdefault(int(what.removeprefix(_LAP)), {})[name] = tensor
            else:
                own[key] = tensor
        stage.load_training_state(own)
        for edge, arrays in remembered.items():
            self.edges[edge].load(arrays)
        for lap, tensors in laps.items():
            blocks = copy.deepcopy(stage.blocks)
            for name, tensor in blocks_state(blocks).items():
                tensor.copy_(tensors[name])
            self._frozen[index, lap] = blocks

    def _shelved(self, index: int) -> Mapping[str, Tensor]:
        assert self._shelf is not None
        return self._shelf.get(index)

    def release(self, stage: int, lap: int) -> None:
        """Nobody will ask any more for the stage as it was after the lap."""
        self._frozen.pop((stage, lap), None)

    def work(
        self,
        item: Item,
        features: Features,
        labels: Tensor,
        *,
        first: int | None = None,
        samples: np.ndarray | None = None,
    ) -> Work:
        """Pass a microbatch through the hosted stages, each as its role is, and no further than it has to go.

        Args:
            item: the microbatch.
            features: what enters the first of them, on the device.
            labels: int64 ``(N,)``.
            first: the stage they enter; default: the first hosted.
            samples: which of the training samples they are, ``(N,)``; None: no codec asks.

        Raises:
            StageError: a stage failed; it names the stage, the microbatch and the cause.
        """
        reports, arrivals, departures = [], [], []
        last = self.spec.stages.stop - 1 if item.stage is None else min(item.stage, self.spec.stages.stop - 1)
        for index in range(self.spec.stages.start if first is None else first, last + 1):
            if reports:
                features, arrival, departure = self._hop(index, features, Microbatch(item=item, samples=samples))
                arrivals.append(arrival)
                departures.append(departure)
            features, report = self._work_one(self.stage(index), item, features, labels)
            reports.append(report)
        return Work(features=features, reports=tuple(reports), arrivals=tuple(arrivals), departures=tuple(departures))

    def peak_memory_bytes(self) -> int:
        """Largest number so far: allocated on the device, or of this process on a CPU, without the object store."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._memory.so_far()

    def _work_one(self, stage: Stage, item: Item, features: Features, labels: Tensor) -> tuple[Features, StageReport]:
        begun_s = self._clock()
        role = item.role(stage.index)
        try:
            if role == "forward":
                features, measures = self._forward(stage, item.lap, features), NOTHING
            elif role == "train":
                self._keep_lap(stage, item.lap)
                features, measures = stage.train(item, features, labels)
                if delay_s := self.spec.delays_s.get(stage.index):
                    time.sleep(delay_s)
            else:
                features, measures = stage.evaluate(features, labels)
        except Exception as error:
            raise stage_error(stage.index, item, error) from error
        return features, StageReport(
            stage=stage.index,
            role=role,
            loss_sum=measures.loss_sum,
            transport_cost_sum=measures.transport_cost_sum,
            num_correct=measures.num_correct,
            num_samples=item.num_samples if role != "forward" else 0,
            compute_s=self._clock() - begun_s,
            lr=measures.lr,
            multiplier=measures.multiplier,
            updates=stage.updates,
        )

    def _forward(self, stage: Stage, lap: int, features: Features) -> Features:
        assert stage.lap <= lap or (stage.index, lap) in self._frozen
        return stage.forward(features, blocks=self._frozen.get((stage.index, lap)))

    def _keep_lap(self, stage: Stage, lap: int) -> None:
        """A stage goes on to its next lap: keep a copy as it was, for the stages that are still behind."""
        if self._keeps_laps and lap != stage.lap:
            self._frozen[stage.index, stage.lap] = copy.deepcopy(stage.blocks)

    def _put_away(self, index: int) -> None:
        assert self._shelf is not None
        self._shelf.put(index, self._resident.pop(index).training_state())

    def _hop(self, edge: int, features: Features, microbatch: Microbatch) -> tuple[Features, Arrival, Departure]:
        begun_s = self._clock()
        passed = self.edges[edge].round_trip(features, microbatch)
        took_s = self._clock() - begun_s
        departure = Departure(
            edge=edge,
            payload_bytes=num_bytes(features),
            wire_bytes=0,
            encode_s=took_s,
            put_s=0.0,
            in_turn_s=took_s,
        )
        return passed, Arrival(edge=edge, fetch_s=0.0, decode_s=0.0, exposed_s=0.0), departure


def _edges_of(stage: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """What the state of the codecs beside a stage is called, and which edges they are."""
    return ("edge in", stage), ("edge out", stage + 1)


def build_stages(spec: HostSpec, stages: range, replicas: Replicas | None = None) -> list[Stage]:
    """Consecutive stages, initialized: the whole network is built, so that everyone's weights come from one place, and
    the blocks of others are dropped."""
    own = spec.blueprint.partition.stages
    needed = range(own[stages.start].start, own[stages.stop - 1].stop)
    blocks = network(spec.config, spec.problem, spec.build, needed=needed)
    return [_build_stage(spec, index, blocks, replicas) for index in stages]


def stage_error(stage: int, item: Item, error: BaseException) -> StageError:
    """What went wrong at a stage: its code, or its device."""
    kinds = {torch.AcceleratorError: DeviceLostError, PeersGoneError: PeerLostError}
    kind = next((kind for cause, kind in kinds.items() if isinstance(error, cause)), StageError)
    return kind(stage, str(item), explain(error))


def explain(error: BaseException) -> str:
    """An exception in one line: its class, its message, and the line of code where it is not torch's."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    if own and not isinstance(error, FloatingPointError):
        text += f" ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})"
    return text


def _build_stage(spec: HostSpec, index: int, blocks: list[Block], replicas: Replicas | None) -> Stage:
    blocks_of_stage = spec.blueprint.partition.stages[index]
    own = blocks[blocks_of_stage.start : blocks_of_stage.stop]
    classifier = classifier_of(spec.config, spec.problem, spec.blueprint.classified[index])
    model = spec.config.model
    how = "orthogonal" if model.initialization in ("auto", "built") else model.initialization
    initialize(classifier, how, gain=model.gain, seed=derive_seed(spec.config.seed, "classifier", index))
    if model.sync_batchnorm:
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm
        own = [
            replace(block, modules=tuple((name, synchronized(each)) for name, each in block.modules)) for block in own
        ]
        classifier = synchronized(classifier)
    return Stage(
        index=index,
        num_stages=spec.blueprint.num_stages,
        blocks=own,
        classifier=classifier,
        config=spec.config,
        steps_per_epoch=spec.steps_per_epoch,
        device=spec.device,
        replicas=replicas,
    )
