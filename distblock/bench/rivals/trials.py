"""What a rival's processes are given, and what they leave: files in one folder.

Files, because on several hosts these processes are nobody's children who could be handed anything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from distblock.config import Config, make_config
from distblock.learning.blueprint import Blueprint, Problem, draw_blueprint
from distblock.learning.host import HostSpec

Kind = Literal["end-to-end", "DDP", "GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble"]
"""Plain training in one process, data parallelism, and schedules of torch.distributed.pipelining by its own names."""

STAGES_PER_PROCESS = {"GPipe": 1, "1F1B": 1, "Interleaved1F1B": 2, "InterleavedZeroBubble": 2, "ZBVZeroBubble": 2}
"""Of each schedule."""

Wire = Literal["fp32", "bf16"]
"""What activations and their gradients are cast to between processes."""

CHECKED = 3
"""Steps whose losses are kept, of a run before the one that is timed: each depends on every weight's update before."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all rivals do.

    Attributes:
        config: network, batch and optimizer, for end-to-end training.
        problem: what the network is built for.
        batches: file with ``images`` ``(B, N, C, H, W)`` and ``labels`` ``(B, N)``, taken in turn.
        warm_up: first steps, which do not count.
        steps: steps that count.
    """

    config: Config
    problem: Problem
    batches: Path
    warm_up: int
    steps: int

    def cuts(self, num_stages: int) -> tuple[int, ...]:
        """Where the network is cut into so many stages, balanced as distblock's are.

        Raises:
            InputError: it has fewer blocks.
        """
        return self._blueprint(num_stages).partition.cuts

    def spec(self) -> HostSpec:
        """All of the network in one process, with one loss."""
        return HostSpec(
            run="rivals",
            config=self.config,
            problem=self.problem,
            blueprint=self._blueprint(1),
            stages=range(1),
            steps_per_epoch=self.warm_up + self.steps,
            inputs=None,
            build=None,
        )

    def load(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of each batch."""
        content = load_file(self.batches)
        return list(zip(content["images"], content["labels"], strict=True))

    def _blueprint(self, num_stages: int) -> Blueprint:
        model = self.config.model.model_copy(update={"stages": num_stages})
        return draw_blueprint(self.config.model_copy(update={"model": model}), self.problem)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rival.

    Attributes:
        kind: what it is.
        processes: how many.
        threads: of each.
        microbatches: pieces of the batch: by them BatchNorm normalizes.
        cuts: the first block of each stage, from the second stage on.
        wire: what crosses from stage to stage; DDP, which has none, always averages gradients in fp32.
    """

    kind: Kind
    processes: int = 1
    threads: int = 1
    microbatches: int = 1
    cuts: tuple[int, ...] = ()
    wire: Wire = "fp32"

    @property
    def name(self) -> str:
        """For people."""
        if self.kind == "end-to-end":
            return f"end-to-end, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return self.kind if self.kind == "DDP" else f"{self.kind}, {self.microbatches} microbatches"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Attributes:
        losses: of first steps in fp32, mean over the batch.
        samples_per_s: of the steps that count; None where it failed.
        error: why it failed, in one line.
    """

    losses: tuple[float, ...] = ()
    samples_per_s: float | None = None
    error: str | None = None


def save_batches(path: Path, images: Tensor, labels: Tensor) -> None:
    """For `Task.batches`."""
    save_file({"images": images.contiguous(), "labels": labels.contiguous()}, path)


def write_task(folder: Path, task: Task, trials: Sequence[Trial]) -> None:
    """Leave a task for processes that will read the folder."""
    content = {**vars(task), "config": task.config.model_dump(mode="json"), "problem": asdict(task.problem)}
    content["batches"] = str(task.batches)
    (folder / "task.json").write_text(json.dumps({"task": content, "trials": [asdict(trial) for trial in trials]}))


def read_task(folder: Path) -> tuple[Task, list[Trial]]:
    """What `write_task` left."""
    content = json.loads((folder / "task.json").read_text())
    values = content["task"]
    task = Task(
        config=make_config(values["config"]),
        problem=Problem(**values["problem"]),
        batches=Path(values["batches"]),
        warm_up=values["warm_up"],
        steps=values["steps"],
    )
    return task, [Trial(**{**trial, "cuts": tuple(trial["cuts"])}) for trial in content["trials"]]
