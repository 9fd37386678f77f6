"""Which rivals there are, in which ways each is tried, and a round of all of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distblock.bench.rivals import expected
from distblock.bench.rivals.launch import Start, run_trials, start_here
from distblock.bench.rivals.trials import STAGES_PER_PROCESS, Kind, Task, Trial, Wire, save_batches
from distblock.bench.workers import WARM_UP, Settings, make_items, prepare_run
from distblock.config import Config
from distblock.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of rivals.

    Attributes:
        kinds: which.
        processes: of each that has several.
        microbatches: pieces of the batch that each schedule is tried with.
        wire: of what crosses between stages.
        steps: that count.
    """

    kinds: tuple[Kind, ...]
    processes: int
    microbatches: tuple[int, ...]
    wire: Wire
    steps: int


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What is run beside distblock.

    Attributes:
        task: what all of them do.
        trials: one a rival and number of microbatches.
        losses: of plain training's first steps, by numbers of microbatches and threads.
        errors: why a rival failed, by its name; rounds add to it.
    """

    task: Task
    trials: tuple[Trial, ...]
    losses: Mapping[tuple[int, int], Sequence[float]]
    errors: dict[str, str]

    def measure(self, start: Start = start_here) -> dict[str, float]:
        """A round of all of them, each in fresh processes."""
        found = {}
        for trial in self.trials:
            [outcome] = run_trials(self.task, [trial], start=start)
            outcome = expected.checked(outcome, self.losses[trial.microbatches, trial.threads])
            if outcome.samples_per_s is not None and outcome.error is None:
                found[trial.name] = outcome.samples_per_s
            else:
                self.errors[trial.name] = outcome.error or "no figure"
        return found


def line_up(settings: Settings, choice: Choice, *, folder: Path) -> Rivals:
    """Rivals with their batches, and what their losses have to be.

    Args:
        settings: of distblock's run.
        choice: of rivals.
        folder: for the batches.

    Raises:
        InputError: something that was given cannot be used.
    """
    prepared = prepare_run(settings)
    items = itertools.islice(make_items(settings, prepared), WARM_UP)
    batches = [prepared.data.microbatch(item) for item in items]
    images, labels = (torch.stack([torch.from_numpy(part) for part in parts]) for parts in zip(*batches, strict=True))
    save_batches(folder / "batches.safetensors", images, labels)
    task = Task(
        config=end_to_end(prepared.config),
        problem=prepared.problem,
        batches=folder / "batches.safetensors",
        warm_up=WARM_UP,
        steps=choice.steps,
    )
    errors: dict[str, str] = {}
    trials = tuple(_cut(_trials(choice, on_gpu=settings.gpus_per_worker > 0), task, errors))
    ways = {(trial.microbatches, trial.threads) for trial in trials}
    losses = {way: expected.losses(task, microbatches=way[0], threads=way[1]) for way in ways}
    return Rivals(task=task, trials=trials, losses=losses, errors=errors)


def end_to_end(config: Config) -> Config:
    """The same network, batch and optimizer with one loss; a rate that no number of steps changes."""
    values = config.model_dump()
    values["model"]["stages"] = 1
    values["regime"]["name"] = "end-to-end"
    values["objective"]["tau"] = float("inf")
    values["optimizer"]["schedule"] = "constant"
    values["channel"]["codec"] = "fp32"
    values["resources"]["workers"] = None
    return Config.model_validate(values)


def _trials(choice: Choice, *, on_gpu: bool) -> Iterable[Trial]:
    """Not yet cut."""
    processes = choice.processes
    for kind in choice.kinds:
        if kind == "end-to-end":
            all_cores = 1 if on_gpu else os.cpu_count() or 1
            yield from (Trial(kind=kind, threads=threads) for threads in sorted({1, all_cores}))
        elif kind == "DDP" and processes > 1:
            yield Trial(kind=kind, processes=processes, microbatches=processes)
        elif processes > 1:
            for number in choice.microbatches:
                yield Trial(kind=kind, processes=processes, microbatches=number, wire=choice.wire)


def _cut(trials: Iterable[Trial], task: Task, errors: dict[str, str]) -> Iterable[Trial]:
    for trial in trials:
        num_stages = STAGES_PER_PROCESS.get(trial.kind, 0) * trial.processes
        try:
            yield replace(trial, cuts=task.cuts(num_stages)) if num_stages else trial
        except InputError:
            errors[trial.name] = f"needs {num_stages} stages, and the network has fewer blocks"
