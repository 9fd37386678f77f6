"""Stages that are tried, for real: each in a process of its own, with the shapes that it gets."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from multiprocessing import parent_process
from pathlib import Path

import pytest
from torch import Tensor, nn

from distblock.config import make_config
from distblock.errors import RunFailedError
from distblock.learning.blueprint import Build, Problem
from distblock.planning import rehearsal
from distblock.planning.rehearsal import rehearse
from distblock.planning.stage_trial import Task
from distblock.runtime.group import Group

PROBLEM = Problem(in_channels=1, image_size=8, num_classes=10)


class Pair(nn.Module):
    """Hands on two tensors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = x if isinstance(x, tuple) else (x, x.new_zeros(len(x), 4))
        return self.layer(first), second + 1


def pairs(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    return [Pair(in_channels), Pair(4)]


class Wrapped(nn.Module):
    """Hands on a single tensor in a dict."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": self.layer(x["features"] if isinstance(x, dict) else x)}


def wrapped(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    return [Wrapped(in_channels), Wrapped(4)]


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise ValueError("this batch is too large")
        return x


def breaks(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, 4, 3), Breaks()]


def test_each_stage_with_its_share_of_a_microbatch():
    config = make_config({"model": {"stages": 2}, "data": {"batch_size": 64}, "replicas": 2})
    before = dict(os.environ)
    found = rehearse(config, PROBLEM, nodes=["a", "b"], cores=2)
    assert len(found) == 2
    assert all(each.step_s > 0 and each.memory_bytes > 0 for each in found)
    assert dict(os.environ) == before


class Noted(Group):
    """Leaves a file of its replica's number."""

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        (Path(os.environ["NOTES"]) / str(self.own.start)).touch()
        return super().add(parts)


class Fails(Group):
    """The second replica has an error of its own."""

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        if self.own.start == 1:
            raise ValueError("planted")
        return super().add(parts)


TWO_REPLICAS = {"model": {"stages": 1}, "data": {"batch_size": 64}, "replicas": 2}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two replicas need two cores")
def test_replicas_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTES", str(tmp_path))
    [found] = rehearse(make_config(TWO_REPLICAS), PROBLEM, nodes=["a"], cores=2, peers=Noted)
    assert found.step_s > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two replicas need two cores")
def test_a_replica_that_fails_does_not_leave_the_other_waiting():
    with pytest.raises(ValueError, match="planted"):
        rehearse(make_config(TWO_REPLICAS), PROBLEM, nodes=["a"], cores=2, peers=Fails)


def test_replicas_that_do_not_fit_at_once_are_tried_one_by_one():
    [found] = rehearse(make_config(TWO_REPLICAS), PROBLEM, nodes=["a"], cores=1, peers=Fails)
    assert found.step_s > 0


@pytest.mark.parametrize("build", [pairs, wrapped])
def test_tuples_and_dicts_enter_as_the_blocks_before_make_them(build: Build):
    config = make_config({"model": {"stages": 2, "classifier": "conv"}, "data": {"batch_size": 8}})
    found = rehearse(config, PROBLEM, nodes=["a", "a"], cores=2, build=build)
    assert len(found) == 2


def test_a_stage_that_fails_does_not_leave_the_others_waiting():
    config = make_config({"model": {"stages": 2}, "data": {"batch_size": 8}})
    with pytest.raises(Exception, match="this batch is too large"):
        rehearse(config, PROBLEM, nodes=["a", "a"], cores=2, build=breaks)


def end_itself(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    if parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return pairs(in_channels, image_size, num_classes)


def test_a_process_that_is_ended_is_told():
    config = make_config({"model": {"stages": 2}, "data": {"batch_size": 8}})
    with pytest.raises(RunFailedError, match=r"did not start or was ended by the system; .* out of memory"):
        rehearse(config, PROBLEM, nodes=["a", "a"], cores=2, build=end_itself)


def test_no_more_at_once_than_there_are_cores(monkeypatch: pytest.MonkeyPatch):
    waves: list[list[int]] = []

    def perform(tasks: list[Task]) -> list[rehearsal.Rehearsed]:
        waves.append([task.spec.stages.start for task in tasks])
        return [rehearsal.Rehearsed(step_s=1.0 + task.stage, undisturbed_s=1.0, memory_bytes=1.0) for task in tasks]

    monkeypatch.setattr(rehearsal, "_together", perform)
    config = make_config({"model": {"stages": 3}})
    found = rehearse(config, PROBLEM, nodes=["a", "a", "a"], cores=2)
    # The last wave is filled up, so that none of it has the cores to itself.
    assert waves == [[0, 1], [2, 0]]
    assert [each.step_s for each in found] == [1.0, 2.0, 3.0]
