"""Layouts that are tried, with trials that are made up: which is chosen, and when a block is moved."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from distblock.config import Config, make_config
from distblock.errors import RunFailedError
from distblock.learning.blueprint import Problem
from distblock.planning.costs import Costs
from distblock.planning.layout import Plan, Rehearsed, Seat, Surroundings
from distblock.planning.planner import Planner
from distblock.planning.profile import BlockProfile, CodecProfile, Profile
from distblock.planning.trials import Trials, relieving_move

SECONDS = (0.04, 0.01, 0.01, 0.01, 0.01, 0.02)
"""What each block really takes; the profile holds all to be equal."""


def planner(*, link_bytes_per_s: float = 1e12) -> Planner:
    block = BlockProfile(
        name="block",
        first_s=0.015,
        inner_s=0.015,
        classifier_s=0.0,
        leaving_bytes=1000,
        state_bytes=1000,
        classifier_state_bytes=1000,
        saved_bytes=1000,
        classifier_saved_bytes=1000,
    )
    profile = Profile(
        blocks=(block,) * len(SECONDS),
        num_samples=8,
        entering_bytes=1000,
        codecs={"fp32": CodecProfile(share=1.0, encode_s=0.0, decode_s=0.0)},
    )
    around = Surroundings(cores=64, link_bytes_per_s=link_bytes_per_s, memcpy_bytes_per_s=1e12)
    return Planner(Costs(profile, around, codecs=["fp32"]))


class MadeUp:
    """Takes each block's seconds; at some of its calls something else uses the machine, too."""

    def __init__(self, *, disturbed: frozenset[int] = frozenset(), fails: frozenset[int] = frozenset()) -> None:
        self.cuts: list[tuple[int, ...]] = []
        self._disturbed = disturbed
        self._fails = fails

    def __call__(self, config: Config, problem: Problem, **_: Any) -> tuple[Rehearsed, ...]:
        number, cuts = len(self.cuts), config.model.cuts or ()
        self.cuts.append(cuts)
        if number in self._fails:
            raise RunFailedError("ended")
        bounds = [0, *cuts, len(SECONDS)]
        slower = 3.0 if number in self._disturbed else 1.0
        return tuple(
            Rehearsed(step_s=slower * seconds, undisturbed_s=seconds, memory_bytes=1.0)
            for seconds in (sum(SECONDS[a:b]) for a, b in itertools.pairwise(bounds))
        )


def quickest(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr("distblock.planning.trials.rehearse", made_up)
    own = planner()
    problem = Problem(in_channels=1, image_size=8, num_classes=10)
    trials = Trials(own, make_config({}), problem, build=None, peers=None)
    return trials.quickest({"as many blocks each": own.of_cuts((4,), (Seat(), Seat()))}).plan


def test_the_slowest_worker_gives_blocks_away_as_long_as_that_helps(monkeypatch: pytest.MonkeyPatch):
    made_up = MadeUp()
    plan = quickest(made_up, monkeypatch)
    # 70 and 30 ms, 60 and 40, 50 and 50: the last cannot be bettered.
    assert made_up.cuts == [(4,), (3,), (2,), (1,)]
    assert plan.cuts == (2,)
    assert plan.pace_s == pytest.approx(0.05)


def test_what_else_uses_the_machine_does_not_decide(monkeypatch: pytest.MonkeyPatch):
    made_up = MadeUp(disturbed=frozenset({2}))
    plan = quickest(made_up, monkeypatch)
    assert plan.cuts == (2,)
    assert plan.pace_s == pytest.approx(0.15)


def test_a_move_that_cannot_be_tried_leaves_the_plan(monkeypatch: pytest.MonkeyPatch):
    assert quickest(MadeUp(fails=frozenset({1})), monkeypatch).cuts == (4,)


def test_a_move_to_a_layout_that_is_known_is_that_layout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distblock.planning.trials.rehearse", MadeUp())
    own = planner()
    trials = Trials(own, make_config({}), Problem(in_channels=1, image_size=8, num_classes=10), build=None, peers=None)
    four, three = (own.of_cuts((cut,), (Seat(), Seat())) for cut in (4, 3))
    assert trials.quickest({"four": four, "three": replace(three, pace_s=1.0)}).plan.cuts == (2,)
    assert list(trials.done)[:2] == ["four", "three"]


def test_who_gives_a_block_to_whom():
    own, two, three = planner(), (Seat(),) * 2, (Seat(),) * 3
    assert relieving_move(own.of_cuts((4,), two)) == (0, 1)
    assert relieving_move(own.of_cuts((1, 5), three)) == (1, 0)
    # The last worker has none beside it but the one before.
    assert relieving_move(own.of_cuts((1, 2), three)) == (2, 1)
    assert relieving_move(own.of_cuts((), (Seat(),))) is None


def test_where_the_link_is_what_holds_it_back_nothing_is_moved():
    slow = planner(link_bytes_per_s=1000)
    assert relieving_move(slow.of_cuts((4,), (Seat(node="a"), Seat(node="b")))) is None
