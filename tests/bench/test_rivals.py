"""``distblock bench pipeline``: rivals train what plain training trains, and one that does not is found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distblock.bench.rivals import expected
from distblock.bench.rivals.launch import run_trials
from distblock.bench.rivals.trials import STAGES_PER_PROCESS, Task, Trial, save_batches
from distblock.config import make_config
from distblock.learning.blueprint import Problem

MICROBATCHES = 4


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("rivals") / "batches.safetensors"
    torch.manual_seed(0)
    save_batches(path, torch.randn(3, 16, 1, 8, 8), torch.randint(10, (3, 16)))
    config = make_config(
        {
            "data": {"batch_size": 16},
            "model": {"name": "resnet14", "width": 4},
            "regime": {"name": "end-to-end"},
            "objective": {"tau": "inf"},
            "optimizer": {"schedule": "constant"},
        }
    )
    problem = Problem(in_channels=1, image_size=8, num_classes=10)
    return Task(config=config, problem=problem, batches=path, warm_up=3, steps=2)


def test_every_schedule_trains_what_plain_training_trains(task: Task):
    # The oracle is distblock's plain loop with gradients summed over as many microbatches.
    trials = [schedule(task, name) for name in STAGES_PER_PROCESS]
    trials += [replace(trials[1], wire="bf16"), Trial(kind="DDP", processes=2, microbatches=2)]
    losses = {number: expected.losses(task, microbatches=number) for number in (2, MICROBATCHES)}
    outcomes = run_trials(task, trials)
    for trial, outcome in zip(trials, outcomes, strict=True):
        done = expected.checked(trial, outcome, losses[trial.microbatches])
        assert done.error is None, trial
        assert done.samples_per_s, trial
    # What crosses in bf16 arrives as something else.
    assert outcomes[1].losses != outcomes[len(STAGES_PER_PROCESS)].losses


def schedule(task: Task, kind: Any) -> Trial:
    cuts = task.cuts(2 * STAGES_PER_PROCESS[kind])
    return Trial(kind=kind, processes=2, microbatches=MICROBATCHES, cuts=cuts)
