"""Several runs: compare and tune."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from distblock.comparison import main, run_all
from distblock.config import make_config, read_values
from distblock.errors import InputError, RunFailedError
from distblock.runtime.search import Range, _drawn, _in_turn
from distblock.statistics import interval
from distblock.tuning import _range, lay
from distblock.tuning import main as tune

SMALL = {"executor": "local", "data": {"fraction": 0.2}, "regime": {"epochs": 1}}


def test_the_interval_by_hand():
    # Oracle: mean 2, standard deviation 1, t of 97.5 % with 2 degrees of freedom 4.3027; 4.3027 / sqrt(3) = 2.4842.
    assert interval([0.01, 0.02, 0.03]) == "2.00 +- 2.48"
    assert interval([0.5]) == "50.00"
    assert math.isclose(float(interval([0.1, 0.1]).split("+-")[1]), 0.0)


def write(folder: Path, name: str, **changes: object) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def test_compare_runs_each_setting_with_each_seed_and_not_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path, "greedy", objective={"tau": "inf"}), write(tmp_path, "moved", objective={"tau": 0.5})]
    arguments = [*files, "--seeds", "2", "--folder", "runs", "--data.batch-size", "32"]
    main([*arguments, "--picture", "depth.svg"])
    picture = (tmp_path / "depth.svg").read_text()
    assert picture.count('<g id="line2d_') > 2 * 3
    printed = capsys.readouterr().out
    assert "greedy" in printed
    assert "moved" in printed
    assert "+-" in printed
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert runs == ["greedy-0", "greedy-1", "moved-0", "moved-1"]
    config = read_values(tmp_path / "runs" / "greedy-1" / "config.yaml")
    assert (config["seed"], config["data"]["batch_size"], config["objective"]["tau"]) == (1, 32, "inf")
    times = {name: (tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in runs}
    main(arguments)
    assert times == {name: (tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in runs}


def test_a_run_that_fails_is_named_with_its_log(tmp_path: Path):
    values = {**SMALL, "optimizer": {"lr": 1e9}}
    with pytest.raises(RunFailedError, match=r"the run wild-0 ended with status 1; .*wild-0.log says why"):
        run_all({"wild": values}, seeds=1, folder=tmp_path)
    assert "the loss is not finite" in (tmp_path / "wild-0.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "2"], "expected YAML files of settings, got none"),
        (["{file}", "--seeds", "no"], "compare --seeds: expected a number of 1 or more, got 'no'"),
        (["{file}", "--regime.epoch", "2"], "regime.epoch"),
        (["{file}", "--seed", "2"], "expected no seed in the settings"),
        (["{file}", "{file}"], "expected files with different names"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_compare_says_what_it_expects(tmp_path: Path, arguments: list[str], message: str):
    file = write(tmp_path, "one")
    with pytest.raises(InputError, match=message):
        main([argument.format(file=file) for argument in arguments])


def test_settings_by_dotted_key():
    assert lay({"a": {"b": 1, "c": 2}}, {"a.b": 3, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


def test_ranges():
    assert _range("objective.tau=log:0.3:30") == ("objective.tau", Range(kind="log", values=(0.3, 30.0)))
    assert _range("model.stages=choice:2,blocks") == ("model.stages", Range(kind="choice", values=(2, "blocks")))


@pytest.mark.parametrize("text", ["objective.tau", "objective.tau=log:3:1", "objective.tau=log:0:1", "x=near:1:2"])
def test_ranges_that_are_none(text: str):
    with pytest.raises(InputError, match="tune --search: expected KEY=log:LOW:HIGH"):
        tune(["--search", text])


def test_tune_checks_the_bounds_before_it_starts():
    with pytest.raises(InputError, match=r"objective.label_smoothing: should be less than 1, got 2.0"):
        tune(["--search", "objective.label_smoothing=uniform:0:2"])


@pytest.mark.parametrize(
    ("search", "message"),
    [("model.stages=plan:3", "plan: belongs to model.cuts"), ("model.cuts=plan:no", "expected a number of 1 or more")],
)
def test_planned_partitions_that_are_none(search: str, message: str):
    with pytest.raises(InputError, match=message):
        tune(["--search", search])


def test_planned_partitions_that_there_are_too_few_trials_for():
    with pytest.raises(InputError, match="expected 9 or more, one for each partition"):
        tune(["--search", "model.cuts=plan:9"])


def test_each_value_has_its_turn():
    space = {
        "model.cuts": Range(kind="each", values=([1], [2], [1, 2])),
        "optimizer.lr": Range(kind="log", values=(0.01, 0.1)),
    }
    assert [point["model.cuts"] for point in _in_turn(space, 5)] == [0, 1, 2, 0, 1]
    assert _drawn({"model.cuts": 2, "optimizer.lr": 0.05}, space) == {"model.cuts": [1, 2], "optimizer.lr": 0.05}
    assert _in_turn({"optimizer.lr": space["optimizer.lr"]}, 5) == []


@pytest.mark.usefixtures("shared_ray")
def test_tune_finds_the_better_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    searches = ["--search", "optimizer.lr=choice:0.02,0.000001", "--search", "model.cuts=plan:3"]
    tune([*searches, "--trials", "4", "--grace", "1", "--folder", "tune", "--regime.epochs", "3"])
    printed = capsys.readouterr().out
    assert "best by validation: tune/best.yaml" in printed
    assert "planned samples/s" in printed
    best = make_config(read_values(tmp_path / "tune" / "best.yaml"))
    assert best.optimizer.lr == 0.02
    assert best.model.cuts is not None
    # Of three blocks.
    assert all(0 < cut < 3 for cut in best.model.cuts)
    # Each partition as often as any other, or once more.
    tried = [read_values(path)["model"]["cuts"] for path in (tmp_path / "tune").glob("*/config.yaml")]
    assert len(tried) == 4
    counts = {tuple(cuts): tried.count(cuts) for cuts in tried}
    assert len(counts) >= 2
    assert max(counts.values()) - min(counts.values()) <= 1
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "tune").glob("*/summary.json")]
    assert summaries
