"""``distblock plan`` and ``model.stages: auto``, on a small network that is really profiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distblock import BlockTrainer
from distblock.cli import main
from distblock.config import make_config, read_values
from distblock.errors import InputError
from distblock.planning.layout import Rehearsed, Seat
from distblock.plans import Request, apply, read_request, search
from distblock.plans import main as plan_main

SMALL = ["--data.fraction", "0.3", "--regime.epochs", "1"]


def test_a_network_is_profiled_and_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    to = tmp_path / "plan.yaml"
    words = [*SMALL, "--seats", "a", "b:0.5", "--link-rate", "100mbit", "--codecs", "fp32", "int8", "--to", str(to)]
    plan_main(words, Console(width=140))
    printed = capsys.readouterr().out
    assert "the plan" in printed
    assert "turned down" in printed
    assert "samples/s" in printed
    config = make_config(read_values(to))
    assert config.resources.workers == len(config.model.cuts or ()) + 1
    assert config.data.fraction == 0.3


def test_the_plan_becomes_settings():
    found = search(Request(config=make_config({}), seats=(Seat(), Seat())))
    plan = found.planner.of_cuts((2,), [Seat(), Seat()])
    config = apply(plan, make_config({"model": {"stages": "auto"}}))
    assert config.model.cuts == (2,)
    assert config.resources.workers == 2
    assert config.channel.edge_codecs == {}
    whole = apply(found.planner.of_cuts((), [Seat()]), make_config({"model": {"stages": "auto"}}))
    assert whole.model.stages == 1


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


def test_a_layout_that_does_not_fit_when_it_is_tried_is_refused(monkeypatch: pytest.MonkeyPatch):
    def large(config: Any, problem: Any, *, nodes: list[str], **more: Any) -> tuple[Rehearsed, ...]:
        return tuple(Rehearsed(step_s=0.01, memory_bytes=9e9) for _ in nodes)

    monkeypatch.setattr("distblock.plans.rehearse", large)
    words = r"at most 8,000 MB, but when it was tried, blocks 0 to \d took 9,\d\d\d MB"
    with pytest.raises(InputError, match=words):
        search(Request(config=make_config({}), seats=(Seat(memory_bytes=8e9),)))


def test_the_quickest_when_they_are_tried_is_the_plan(monkeypatch: pytest.MonkeyPatch):
    """One worker looks half as quick as two do, and is not tried; of what is tried the quickest wins."""
    tried: list[tuple[int, ...]] = []

    def slow_if_planned(config: Any, problem: Any, *, nodes: list[str], **more: Any) -> tuple[Rehearsed, ...]:
        tried.append(config.model.cuts or ())
        step_s = 1.0 if len(tried) == 1 else 0.5
        return tuple(Rehearsed(step_s=step_s, memory_bytes=1e6) for _ in nodes)

    monkeypatch.setattr("distblock.plans.rehearse", slow_if_planned)
    monkeypatch.setattr("distblock.plans.WORTH_TRYING", 100.0)
    found = search(Request(config=make_config({}), seats=(Seat(), Seat()), cores=2))
    assert len(tried) > 1
    assert found.plan.cuts != tried[0]
    assert found.plan.pieces[0].compute_s == pytest.approx(0.5, rel=0.1)
    assert tried[0] in [other.cuts for other in found.others.values()]
