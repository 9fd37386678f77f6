"""The asynchronous regime: nobody waits for a slow worker, and what was stale or dropped is told."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from distblock import BlockTrainer
from distblock.config import make_config
from distblock.messages import WorkerReport
from distblock.metrics.accounting import Account
from distblock.metrics.observer import Silent
from distblock.preparation import make_course, make_job, prepare
from distblock.runtime import driver

pytestmark = pytest.mark.usefixtures("shared_ray")


class Watch(Silent):
    """An account; the order in which microbatches came to each worker; and when training ended."""

    def __init__(self) -> None:
        self.account = Account(num_stages=3)
        self.trained: dict[int, list[int]] = {0: [], 1: [], 2: []}
        self.seconds = 0.0

    def begin(self) -> None:
        self.begun_s = time.perf_counter()

    def record(self, report: WorkerReport) -> None:
        self.account.record(report)
        if report.item.purpose == "train":
            self.trained[report.worker].append(report.item.number)

    def record_drop(self, edge: int) -> None:
        self.account.record_drop(edge)


def run(**regime: Any) -> tuple[Watch, dict[int, dict[str, Any]]]:
    config = make_config({"regime": {"name": "asynchronous", "epochs": 2, "evaluate_every": 2, **regime}})
    prepared = prepare(config)
    job = make_job(prepared, run="slow")
    job = replace(job, hosts=tuple(replace(spec, delays_s={1: 0.15}) for spec in job.hosts))
    watch = Watch()
    return watch, driver.execute(job, make_course(prepared), watch, note=print)


def test_a_slow_stage_takes_the_newest_and_those_behind_it_use_again():
    watch, state = run()
    account, microbatches = watch.account, 2 * 20  # 1,294 samples in batches of 64, the tail of 14 joined
    assert sorted(state) == [0, 1, 2]
    # Stage 0 has seen everything; stage 1 has not, and what it has not seen was dropped.
    assert len(watch.trained[0]) == microbatches
    assert len(watch.trained[1]) + account.drops(1) == microbatches
    assert account.drops(1) > 0
    assert sorted(watch.trained[2]) == sorted(watch.trained[1])
    # Behind the slow stage nothing is dropped, and inputs are used again, each four times at most.
    assert account.drops(2) == 0
    assert 0 < account.reuses(2) <= 4 * len(watch.trained[2])
    assert account.reuses(0) == 0
    staleness = account.staleness(1)
    assert staleness.uses >= len(watch.trained[1])
    assert staleness.largest > 1
    # All stages are evaluated on everything.
    for stage in range(3):
        sums = account.stage_pass(stage, 1, "test")
        assert sums is not None
        assert sums.num_samples == prepared_test_samples()


def prepared_test_samples() -> int:
    return prepare(make_config({})).plan.num_test


def test_without_reuse_nothing_is_used_again():
    watch, _ = run(max_reuses=0)
    assert watch.account.reuses(2) == 0


def test_it_learns_and_reports_staleness():
    result = BlockTrainer({"regime": {"name": "asynchronous", "epochs": 8}}).fit()
    assert result.metrics is not None
    assert result.metrics["test_accuracy"] > 0.9
    assert all(edge["staleness_mean"] >= 0 for edge in result.metrics["edges"])
    assert result.metrics["edges"][0]["drops"] >= 0
