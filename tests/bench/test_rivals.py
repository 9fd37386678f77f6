"""``distblock bench pipeline``: rivals train what plain training trains, and one that does not is found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distblock.bench.rivals import expected
from distblock.bench.rivals.launch import run_trials
from distblock.bench.rivals.steps import make_pieces, train_whole
from distblock.bench.rivals.trials import STAGES_PER_PROCESS, Outcome, Task, Trial, save_batches
from distblock.bench.standings import Spread, best, ratios, spread
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
    return Task(config=config, problem=problem, batches=path, warm_up=1, steps=2)


def test_every_schedule_trains_what_plain_training_trains(task: Task):
    # The oracle is distblock's plain loop with gradients summed over as many microbatches.
    trials = [schedule(task, name) for name in STAGES_PER_PROCESS]
    trials += [replace(trials[1], wire="bf16"), Trial(kind="DDP", processes=2, microbatches=2)]
    losses = {number: expected.losses(task, microbatches=number) for number in (2, MICROBATCHES)}
    # torch refuses fewer microbatches than stages; it comes last, since nothing is begun after a failure.
    *outcomes, failed = run_trials(task, [*trials, replace(trials[1], microbatches=1)])
    assert failed.samples_per_s is None
    assert "microbatches" in (failed.error or "")
    for trial, outcome in zip(trials, outcomes, strict=True):
        done = expected.checked(outcome, losses[trial.microbatches])
        assert done.error is None, trial
        assert done.samples_per_s, trial


def schedule(task: Task, kind: Any) -> Trial:
    cuts = task.cuts(2 * STAGES_PER_PROCESS[kind])
    return Trial(kind=kind, processes=2, microbatches=MICROBATCHES, cuts=cuts)


def test_a_rival_that_leaves_blocks_untrained_is_found_out(task: Task):
    trial = Trial(kind="end-to-end")
    plain = expected.losses(task, microbatches=1, threads=torch.get_num_threads())
    for frozen in (None, "0.", "3."):  # of the whole network's modules: the first convolution, the first block
        [network] = make_pieces(task, trial)
        for name, parameter in network.modules_in_order.named_parameters():
            parameter.requires_grad_(frozen is None or not name.startswith(frozen))
        step = train_whole(network, task.config.optimizer)
        losses = tuple(float(step(*batch)[0].detach()) for batch in task.load())
        done = expected.checked(Outcome(losses=losses, samples_per_s=1.0), plain)
        assert (done.error is None) == (frozen is None), frozen


def test_only_what_crosses_is_cast(task: Task):
    images, _ = task.load()[0]
    first, last = make_pieces(task, Trial(kind="GPipe", cuts=task.cuts(2), wire="bf16"))
    crossing = first(images)
    assert crossing.dtype == torch.bfloat16
    assert last(crossing).dtype == torch.float32
    assert {parameter.dtype for parameter in last.parameters()} == {torch.float32}


def test_standings_pair_within_a_round():
    # A rival that failed in the second round: ratios by hand, of the rounds in which both came through.
    rounds = [{"ours": 200.0, "4 pieces": 100.0, "8 pieces": 80.0}, {"ours": 120.0, "8 pieces": 160.0}]
    assert ratios(rounds, "ours", "4 pieces") == [2.0]
    assert ratios(rounds, "ours", "8 pieces") == [2.5, 0.75]
    assert best(rounds, ["4 pieces", "8 pieces"]) == "8 pieces"
    assert best(rounds, ["none came through"]) is None
    assert spread(ratios(rounds, "ours", "8 pieces")) == Spread(median=1.625, min=0.75, max=2.5)
