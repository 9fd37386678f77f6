"""``distblock plan`` and ``model.stages: auto``, on a small network that is really profiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning.networks import network
from rich.console import Console

from distblock import BlockTrainer
from distblock.cli import main
from distblock.config import make_config, read_values
from distblock.errors import InputError, RunFailedError
from distblock.planning.layout import Rehearsed, Seat, Surroundings
from distblock.planning.request import Request, read_request
from distblock.planning.settings import apply
from distblock.plans import candidates, search
from distblock.plans import main as plan_main

SMALL = ["--data.fraction", "0.3", "--regime.epochs", "1"]


def test_a_network_is_profiled_and_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    to = tmp_path / "plan.yaml"
    words = [*SMALL, "--seats", "a", "b:0.5", "--link-rate", "100mbit", "--codecs", "fp32", "int8", "--to", str(to)]
    words += ["--simulate", "100", "--link-delay", "25ms", "--away", "0:1-2"]
    plan_main(words, Console(width=140))
    printed = capsys.readouterr().out
    assert "the plan" in printed
    assert "turned down" in printed
    assert "samples/s" in printed
    assert "Told as a run: 100 microbatches" in printed
    assert "is away" in printed
    config = make_config(read_values(to))
    assert config.resources.workers == len(config.model.cuts or ()) + 1
    assert config.data.fraction == 0.3


def test_the_plan_becomes_settings(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: 0.03, 2: 0.02}, monkeypatch)
    found = search(request(workers=2))
    plan = found.planner.of_cuts((2,), [Seat(), Seat()])
    config = apply(plan, make_config({"model": {"stages": "auto"}}))
    assert config.model.cuts == (2,)
    assert config.resources.workers == 2
    assert config.channel.edge_codecs == {}
    assert config.resources.nodes == ()
    whole = apply(found.planner.of_cuts((), [Seat()]), make_config({"model": {"stages": "auto"}}))
    assert whole.model.stages == 1
    # Workers whose nodes are named by their addresses stay on them.
    placed = found.planner.of_cuts((2,), [Seat(node="10.0.0.1"), Seat(node="10.0.0.2")])
    assert apply(placed, make_config({})).resources.nodes == ("10.0.0.1", "10.0.0.2")


@pytest.mark.usefixtures("shared_ray")
def test_train_plans_by_itself_and_goes_on_with_that_plan(tmp_path: Path):
    config: dict[str, Any] = {
        "model": {"stages": "auto"},
        "data": {"fraction": 0.3},
        "regime": {"epochs": 1},
        "resources": {"workers": 2},
        "run_dir": str(tmp_path / "run"),
    }
    trainer = BlockTrainer(config)
    result = trainer.fit()
    assert result.metrics is not None
    kept = make_config(read_values(tmp_path / "run" / "config.yaml"))
    assert kept.model.stages != "auto"
    assert len(result.metrics["stages"]) == len(kept.model.cuts or ()) + 1
    with pytest.raises(InputError, match="has ended"):
        BlockTrainer({**config, "resume": True}).fit()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seats", "here:fast"], "--seats: expected NODE"),
        (["--seats", "a", "b"], "--link-rate: expected the rate between the nodes"),
        (["--link-rate", "fast"], "--link-rate: expected a number with one of kbit"),
        (["--memory", "3"], "--memory: expected a number with one of kb"),
        (["--codecs", "int3"], "--codecs: expected some of fp32"),
        (["--to", "/no/folder/plan.yaml"], "--to: expected a file in a folder that is there"),
        (["--regime.name", "sequential"], "plan: expected the parallel or the asynchronous regime"),
        (["--model.cuts", "1"], "plan: expected no model.cuts"),
        (["--memory", "1mb"], "but none fits: a block alone takes"),
        (["--link-delay", "25ms"], "--link-delay: expected --simulate N beside it"),
        (["--simulate", "9", "--link-delay", "25"], "--link-delay: expected a number with one of ms, s"),
        (["--simulate", "9", "--seats", "a", "a", "--away", "2:1-3"], "WORKER 0 to 1, got 2:1-3"),
        (
            ["--replicas", "2", "--seats", "a", "b", "--link-rate", "1gbit"],
            "--replicas: expected --seats that are alike",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_auto_belongs_to_regimes_in_which_all_compute_at_once():
    with pytest.raises(InputError, match=r"model\.stages: auto plans for stages that all compute at once"):
        make_config({"model": {"stages": "auto"}, "regime": {"name": "sequential"}})


def test_seats_say_node_speed_and_memory():
    request, _ = read_request(["--seats", "a:1:2gb", "b:0.5", "--memory", "800mb", "--link-rate=1gbit"])
    assert request.seats == (Seat(node="a", memory_bytes=2e9), Seat(node="b", speed=0.5, memory_bytes=8e8))
    assert request.link_bytes_per_s == 1.25e8


def tried_as(results: Mapping[int, float | Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up trials of a made-up network of three blocks: seconds of a stage, of which replicas take their share, or
    what is raised, by number of workers; a worker alone takes 9 GB."""

    def rehearsed(config: Any, problem: Any, *, nodes: list[str], **more: Any) -> tuple[Rehearsed, ...]:
        result = results[len(nodes)]
        if isinstance(result, Exception):
            raise result
        own = result / config.replicas
        return tuple(
            Rehearsed(step_s=own, undisturbed_s=own, memory_bytes=9e9 if len(nodes) == 1 else 1e6) for _ in nodes
        )

    around = Surroundings(cores=64, link_bytes_per_s=1e8, memcpy_bytes_per_s=1e10)
    monkeypatch.setattr("distblock.plans.profile", lambda *_, **__: network(0.01, 0.01, 0.01))
    monkeypatch.setattr("distblock.plans.look_around", lambda *_, **__: around)
    monkeypatch.setattr("distblock.planning.trials.rehearse", rehearsed)


def request(*, workers: int, **seat: float) -> Request:
    return Request(config=make_config({}), seats=(Seat(**seat),) * workers, cores=64)  # type: ignore[arg-type]


def test_a_layout_that_does_not_fit_when_it_is_tried_is_refused(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: 0.01}, monkeypatch)
    words = r"at most 8,000 MB, but when it was tried, blocks 0 to \d took 9,\d\d\d MB"
    with pytest.raises(InputError, match=words):
        search(request(workers=1, memory_bytes=8e9))


def test_the_quickest_when_they_are_tried_is_the_plan(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: 1.0, 2: 0.5, 3: 0.7}, monkeypatch)
    found = search(request(workers=3))
    assert len(found.plan.pieces) == 2
    assert found.plan.pieces[0].compute_s == pytest.approx(0.5, rel=0.1)
    assert found.others["3 workers"].pace_s > found.plan.pace_s
    assert set(found.others) >= {"3 workers", "1 worker"}


def test_what_was_tried_and_does_not_fit_or_fails_makes_room_for_what_does(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: 0.1, 2: 0.5, 3: RunFailedError("ended")}, monkeypatch)
    found = search(request(workers=3, memory_bytes=8e9))
    assert len(found.plan.pieces) == 2
    tried_as({1: 0.1, 2: RunFailedError("ended"), 3: RunFailedError("ended")}, monkeypatch)
    with pytest.raises(InputError, match="when it was tried"):
        search(request(workers=3, memory_bytes=8e9))
    tried_as(dict.fromkeys((1, 2, 3), RunFailedError("ended")), monkeypatch)
    with pytest.raises(RunFailedError, match="ended"):
        search(request(workers=3, memory_bytes=8e9))


def test_one_worker_of_any_size_needs_no_trial(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: RunFailedError("tried")}, monkeypatch)
    assert search(request(workers=1)).plan.cuts == ()


def test_replicas_are_chosen_where_they_are_quicker(monkeypatch: pytest.MonkeyPatch):
    """Two workers that take half a second each, or one stage that two replicas share."""
    asked = replace(request(workers=2), replicas=(1, 2))
    tried_as({1: 0.6, 2: 0.5}, monkeypatch)
    found = search(asked)
    assert (found.plan.replicas, len(found.plan.pieces)) == (2, 1)
    assert found.plan.pace_s == pytest.approx(0.3, rel=0.1)
    settings = apply(found.plan, asked.config)
    assert (settings.replicas, settings.resources.workers, settings.model.stages) == (2, 1, 1)
    assert "2 workers, 1 replica" in found.others
    tried_as({1: 1.2, 2: 0.5}, monkeypatch)
    assert search(asked).plan.replicas == 1
    # A layout that cannot be tried leaves the others.
    tried_as({1: RunFailedError("ended"), 2: 0.5}, monkeypatch)
    assert search(asked).plan.replicas == 1


def test_the_plan_is_the_first_candidate(monkeypatch: pytest.MonkeyPatch):
    tried_as({1: 1.0, 2: 0.5}, monkeypatch)
    config = make_config({"resources": {"workers": 2}})
    [first, *_] = candidates(config, 2)
    assert len(first) == 1
