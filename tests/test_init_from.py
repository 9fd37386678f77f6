"""Going on from an earlier run: frozen stages, and classes that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from further import further

from distblock import BlockTrainer
from distblock.errors import InputError
from distblock.runs import RunDirectory, read_weights, read_weights_manifest

OLD = ["0", "1", "2", "3", "4"]
NEW = ["5", "6", "7", "8", "9"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("base") / "run"
    fit({"run_dir": str(folder), "regime": {"epochs": 3}, "data": {"classes": OLD}})
    return folder


def fit(config: dict[str, Any]) -> dict[str, Any]:
    metrics = BlockTrainer({"executor": "local", **config}).fit().metrics
    assert metrics is not None
    return metrics


def going_on(base: Path, run: Path, **settings: Any) -> dict[str, Any]:
    model = {"init_from": str(base), "grow_classes": True, **settings.pop("model", {})}
    data = {"train_classes": NEW, "per_class": 20, **settings.pop("data", {})}
    return {"run_dir": str(run), "model": model, "data": data, "regime": {"epochs": 2}, **settings}


def weights(run: Path) -> dict[int, dict[str, np.ndarray]]:
    return read_weights(RunDirectory.at(run))


def test_frozen_stages_keep_their_blocks_and_the_others_learn(base: Path, tmp_path: Path):
    fit(going_on(base, tmp_path / "run", model={"freeze_before": 2}))
    before, after = weights(base), weights(tmp_path / "run")
    for stage in range(3):
        network = {name for name in after[stage] if name.startswith("network.")}
        same = {name for name in network if np.array_equal(before[stage][name], after[stage][name])}
        # Running statistics, too: a frozen block is the one that there was.
        assert same == (network if stage < 2 else set())
        assert not np.array_equal(before[stage]["classifier.conv.weight"], after[stage]["classifier.conv.weight"])


def test_classifiers_grow_and_old_rows_are_kept(base: Path, tmp_path: Path):
    # So small a rate that nothing moves: what is there is what the run began with.
    fit(going_on(base, tmp_path / "run", optimizer={"lr": 1e-30, "weight_decay": 0.0}))
    before, after = weights(base), weights(tmp_path / "run")
    for stage in range(3):
        rows = after[stage]["classifier.linear.weight"]
        assert rows.shape[0] == 10
        assert np.allclose(rows[:5], before[stage]["classifier.linear.weight"], atol=1e-12)
        assert np.allclose(rows[5:], 0, atol=1e-12)
    info = [read_weights_manifest(RunDirectory.at(run))["data"] for run in (base, tmp_path / "run")]
    assert info[1]["class_names"] == OLD + NEW
    # Normalization is the data's own: nothing is frozen, and yet old weights know the old one.
    assert info[1]["mean"] == info[0]["mean"]


def test_data_without_the_old_classes(base: Path, tmp_path: Path):
    config = going_on(base, tmp_path / "run", data={"classes": NEW[::-1], "train_classes": [], "per_class": None})
    fit(config)
    assert read_weights_manifest(RunDirectory.at(tmp_path / "run"))["data"]["class_names"] == OLD + NEW[::-1]
    settings = RunDirectory.at(tmp_path / "run").read_config()
    assert list(settings.data.absent_classes) == OLD


def test_classes_in_another_order_keep_their_own_rows(base: Path, tmp_path: Path):
    shuffled = ["3", "9", "0"]
    settings = {"model": {"init_from": str(base)}, "data": {"classes": shuffled}, "regime": {"epochs": 1}}
    fit({**settings, "run_dir": str(tmp_path / "run"), "optimizer": {"lr": 1e-30, "weight_decay": 0.0}})
    before, after = (weights(run)[1]["classifier.linear.bias"] for run in (base, tmp_path / "run"))
    assert after == pytest.approx([before[3], 0.0, before[0]], abs=1e-12)


@pytest.mark.parametrize("replicas", [1, further(2)])
def test_workers_give_the_plain_loops_weights(base: Path, tmp_path: Path, shared_ray: None, replicas: int):
    config = {"model": {"freeze_before": 1}, "replicas": replicas}
    plain = fit(going_on(base, tmp_path / "plain", **config))
    workers = fit({**going_on(base, tmp_path / "workers", **config), "executor": "ray"})
    assert [stage["weights_sha256"] for stage in workers["stages"]] == [
        stage["weights_sha256"] for stage in plain["stages"]
    ]
    # Means over replicas of what did not move would not be the same in the last bits.
    before, after = weights(base)[0], weights(tmp_path / "workers")[0]
    assert all(np.array_equal(before[name], after[name]) for name in after if name.startswith("network."))


def test_a_grown_runs_own_settings_with_other_classes(base: Path, tmp_path: Path):
    fit(going_on(base, tmp_path / "run", data={"classes": NEW, "train_classes": [], "per_class": 20}))
    again = RunDirectory.at(tmp_path / "run").read_config().model_dump()
    again["run_dir"] = str(tmp_path / "again")
    again["data"] |= {"classes": ["1", "7"]}
    BlockTrainer(again).fit()
    names = read_weights_manifest(RunDirectory.at(tmp_path / "again"))["data"]["class_names"]
    assert names == ["0", "2", "3", "4", "1", "7"]


def test_a_run_goes_on_without_the_one_it_came_from(base: Path, tmp_path: Path):
    """The settings that it leaves are complete; only the first weights come from elsewhere."""
    from test_resuming import cut_short

    moved = tmp_path / "base"
    base_copy = {"run_dir": str(moved), "regime": {"epochs": 1}, "data": {"classes": OLD}}
    fit(base_copy)
    whole = fit(going_on(moved, tmp_path / "whole", model={"freeze_before": 1}))
    config = going_on(moved, tmp_path / "cut", model={"freeze_before": 1}, checkpoint={"every_microbatches": 1})
    cut_short({"executor": "local", **config}, evaluations=3)
    moved.rename(tmp_path / "away")
    resumed = fit({**config, "resume": True})
    assert [stage["weights_sha256"] for stage in resumed["stages"]] == [
        stage["weights_sha256"] for stage in whole["stages"]
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"init_from": None}}, "model.grow_classes: expected model.init_from with it"),
        ({"model": {"freeze_before": 4}}, "model.freeze_before: expected 0 to 3, which is the number of stages, got 4"),
        ({"model": {"init_from": "a.safetensors"}}, "model.grow_classes: expected model.init_from to be a run"),
        ({"model": {"init_from": "nowhere"}}, "no final weights there"),
        (
            {"model": {"init_from": "a.safetensors", "grow_classes": False, "freeze_before": 1}},
            r"model\.freeze_before: expected data\.mean and data\.std beside a\.safetensors",
        ),
        (
            {"model": {"init_from": None, "grow_classes": False}, "data": {"train_classes": ["3"]}},
            r"data\.train_classes: expected two or more, or model\.init_from, got 3 alone",
        ),
        ({"data": {"classes": ["a", False]}}, "got False; put quotes around a name such as 'no'"),
        (
            {"model": {"freeze_before": 1}, "regime": {"name": "end-to-end"}},
            "model.freeze_before: expected stages that are known, got 1 with the end-to-end regime",
        ),
        ({"data": {"mean": [0.1]}}, "data.mean: expected it with data.std"),
        ({"data": {"classes": ["1", "1"]}}, "data.classes: expected each name once, got 1 1"),
    ],
)
def test_what_cannot_be_gone_on_from(base: Path, tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        fit(going_on(base, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
