"""Runs with faults in them against runs without, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distblock.config import make_config
from distblock.learning.stage import arrays_sha256
from distblock.local import execute as execute_locally
from distblock.messages import Failure
from distblock.metrics.accounting import Account
from distblock.metrics.observer import Silent
from distblock.preparation import make_course, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.crew import State
from distblock.runtime.faults import Fault


class Watch(Silent):
    """An account, with the failures in it."""

    def __init__(self, num_stages: int) -> None:
        self.account = Account(num_stages=num_stages)
        self.record = self.account.record
        self.record_departure = self.account.record_departure
        self.record_failure = self.account.record_failure


def run(config: dict[str, Any], *faults: Fault) -> tuple[list[str], Account, list[Failure]]:
    prepared = prepare(make_config(config))
    job = make_job(prepared, run="faulty")
    watch = Watch(prepared.blueprint.num_stages)
    state = driver.execute(replace(job, faults=faults), make_course(prepared), watch, note=print)
    return hashes(state), watch.account, watch.account.failures


def undisturbed(config: dict[str, Any]) -> tuple[list[str], Account]:
    resources = {**config.get("resources", {}), "workers": None}
    prepared = prepare(make_config({**config, "executor": "local", "resources": resources}))
    watch = Watch(prepared.blueprint.num_stages)
    job = make_job(prepared, run="undisturbed")
    [host] = job.hosts
    state = execute_locally(host, prepared.data, make_course(prepared), watch, initial={})
    return hashes(state), watch.account


def hashes(state: State) -> list[str]:
    return [arrays_sha256(arrays) for _, arrays in sorted(state.items())]


def check(config: dict[str, Any], *faults: Fault, survived: int | None = None) -> list[Failure]:
    disturbed, account, failures = run(config, *faults)
    expected, alone = undisturbed(config)
    assert disturbed == expected
    # Nothing is counted twice, and nothing is left out.
    figures = ("train_loss", "train_accuracy", "validation_accuracy", "test_accuracy", "num_samples", "lr")
    for row, other in zip(account.rows(), alone.rows(), strict=True):
        for name in figures:
            figure, wanted = getattr(row, name), getattr(other, name)
            # Reports may overtake each other, and replicas report apart: the last bit of a mean may differ.
            assert figure == wanted or abs(figure - wanted) <= 1e-12 * abs(wanted), name
    assert len(failures) == (len(faults) if survived is None else survived)
    return failures
