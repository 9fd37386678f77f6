"""A run that was cut short goes on, and ends with the weights, the figures and the bytes of one that was not.

The oracle is the plain loop, uninterrupted. Runs are cut short by an error in the middle of things: what is lost since
the last checkpoint is computed again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from further import further

from distblock import BlockTrainer, InputError, local
from distblock.errors import AttemptLostError
from distblock.runs import RunDirectory, checkpoints
from distblock.runs.bundle import write_bundle
from distblock.runs.checkpoints import list_checkpoints

pytestmark = pytest.mark.usefixtures("shared_ray")

SMALL: dict[str, Any] = {"data": {"batch_size": 96, "fraction": 0.5}, "checkpoint": {"every_microbatches": 3}}
REGIMES: dict[str, dict[str, Any]] = {
    "parallel": {"regime": {"name": "parallel", "epochs": 4}},
    "patience": {"regime": {"name": "parallel", "epochs": 6, "patience": 1}},
    "sequential": {"regime": {"name": "sequential", "epochs": 2}},
    "multi-lap": {"regime": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": "frozen"}},
    "wavefront-cache": {"regime": {"name": "wavefront", "epochs": 1, "laps": 3, "inputs": "cache"}},
    "wavefront-frozen": {"regime": {"name": "wavefront", "epochs": 1, "laps": 3, "inputs": "frozen"}},
    "two-workers": {
        "regime": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": "cache"},
        "resources": {"workers": 2},
    },
    "end-to-end": {"regime": {"name": "end-to-end", "epochs": 3}},
    "microbatches": {
        "regime": {"name": "parallel", "epochs": 3},
        "data": {"batch_size": 96, "microbatch_size": 32, "fraction": 0.5, "augment": ["crop", "flip"]},
        "objective": {"multiplier_step": 1.0, "multiplier_every": 2},
        "optimizer": {"name": "adam", "lr": 0.001},
    },
}
FIGURES = ("train_loss", "train_accuracy", "val_accuracy", "test_accuracy", "transport_cost", "weights_sha256")


class CutShortError(Exception):
    """Stands for whatever ends a run in the middle."""


class Ends:
    """Raises at the n-th evaluation of a stage."""

    def __init__(self, evaluations: int) -> None:
        self.left = evaluations

    def __call__(self, stage: int, accuracy: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise CutShortError


def settings(regime: str, **changes: Any) -> dict[str, Any]:
    return {**SMALL, **REGIMES[regime], **changes}


def fit(config: dict[str, Any]) -> dict[str, Any]:
    metrics = BlockTrainer(config).fit().metrics
    assert metrics is not None
    return metrics


def cut_short(config: dict[str, Any], *, evaluations: int) -> None:
    with pytest.raises(CutShortError):
        BlockTrainer(config, on_evaluation=Ends(evaluations)).fit()


def figures(summary: dict[str, Any]) -> list[list[Any]]:
    return [[stage[key] for key in FIGURES] for stage in summary["stages"]]


FURTHER_ON_WORKERS = ("wavefront-cache", "microbatches")


@pytest.mark.parametrize(
    ("regime", "executor"),
    [
        *((name, "local") for name in REGIMES),
        ("two-workers", "ray"),
        *(further(name, "ray") for name in FURTHER_ON_WORKERS),
    ],
)
def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(tmp_path: Path, regime: str, executor: str):
    changes = {"resources": {}} if executor == "local" else {}
    config = settings(regime, executor=executor, run_dir=str(tmp_path / "run"), **changes)
    cut_short(config, evaluations=5 if regime != "end-to-end" else 2)
    directory = RunDirectory.at(tmp_path / "run")
    assert list_checkpoints(directory)
    resumed = fit({**config, "resume": True})
    alone = fit(settings(regime, executor="local", resources={}, run_dir=str(tmp_path / "alone")))
    assert figures(resumed) == figures(alone)
    assert resumed["epochs"] == alone["epochs"]
    rows = [pq.read_table(tmp_path / name / "metrics.parquet").to_pylist() for name in ("run", "alone")]
    # Each sample exactly once an epoch.
    assert [(r["stage"], r["epoch"], r["num_samples"], r["train_loss"]) for r in rows[0]] == [
        (r["stage"], r["epoch"], r["num_samples"], r["train_loss"]) for r in rows[1]
    ]
    # What crossed the edges is counted once, too, whatever had to cross again; a cache read by another process crosses.
    cached = regime in ("wavefront-cache", "two-workers", "sequential")
    same = ("payload_bytes",) if executor == "ray" and cached else ("hops", "payload_bytes")
    assert [[e[key] for key in same] for e in resumed["edges"]] == [[e[key] for key in same] for e in alone["edges"]]
    assert [failure["kind"] for failure in resumed["failures"]] == ["interrupted"]


def test_on_another_executor_and_other_workers(tmp_path: Path):
    config = settings("parallel", run_dir=str(tmp_path / "run"))
    cut_short(config, evaluations=5)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    two = fit({**config, "resources": {"workers": 2}, "resume": True})
    one = fit({**config, "executor": "local", "run_dir": str(tmp_path / "copy"), "resume": True})
    alone = fit(settings("parallel", executor="local", run_dir=str(tmp_path / "alone")))
    assert figures(two) == figures(one) == figures(alone)


def test_nothing_is_written_after_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    def slow(*args: Any) -> None:
        written.append("begun")
        time.sleep(1.0)
        write_bundle(*args)
        written.append("ended")

    monkeypatch.setattr(checkpoints, "write_bundle", slow)
    # A microbatch a call: the first checkpoint comes soon.
    config = settings("parallel", channel={"microbatches_per_call": 1}, run_dir=str(tmp_path / "run"))
    cut_short(config, evaluations=8)
    assert written
    assert written[-1] == "ended"


def test_a_run_that_has_ended_is_not_resumed(tmp_path: Path):
    config = settings("parallel", executor="local", run_dir=str(tmp_path / "run"))
    fit(config)
    with pytest.raises(InputError, match="the run has ended already"):
        fit({**config, "resume": True})


def test_with_other_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    channel = {"edge_codecs": {1: "bf16", 2: "bf16"}}
    config = settings("parallel", executor="local", model={"cuts": [1, 2]}, channel=channel)
    config["run_dir"] = str(tmp_path / "run")
    cut_short(config, evaluations=5)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    changed = {**config, "model": {"cuts": [1]}, "resume": True}
    resumed = fit(changed)
    assert [len(stage["blocks"]) for stage in resumed["stages"]] == [1, 2]
    said = capsys.readouterr().err
    assert "cut before blocks [1] instead of [1, 2]" in said
    assert "every stage keeps its classifier" in said
    assert "edges 1->2 are no more" in said
    assert len(list((tmp_path / "run").glob("before-*-metrics.parquet"))) == 1
    # The workers' weights are the plain loop's here as well.
    assert figures(fit({**changed, "executor": "ray", "run_dir": str(tmp_path / "copy")})) == figures(resumed)


@pytest.mark.parametrize(("regime", "why"), [("sequential", "at different points"), ("patience", "judged one by one")])
def test_where_stages_are_apart_they_cannot_be_cut_elsewhere(tmp_path: Path, regime: str, why: str):
    config = settings(regime, executor="local", model={"cuts": [1, 2]}, run_dir=str(tmp_path / "run"))
    cut_short(config, evaluations=3)
    with pytest.raises(InputError, match=rf"model.cuts: expected \[1, 2\], got \[1\]: in the .* {why}"):
        fit({**config, "model": {"cuts": [1]}, "resume": True})


def test_going_back_after_being_cut_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Cause: the sums of the earlier stages were taken up for the new ones."""
    config = settings("parallel", executor="local", model={"cuts": [1]}, run_dir=str(tmp_path / "run"))
    cut_short(config, evaluations=3)
    attempts = []

    def lost_once(*arguments: Any, **keywords: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise AttemptLostError("node_died", "a node", "planned")
        return execute(*arguments, **keywords)

    execute = local.execute
    monkeypatch.setattr(local, "execute", lost_once)
    summary = fit({**config, "model": {"cuts": [1, 2]}, "resume": True})
    assert summary["num_stages"] == 3
    assert summary["failures"][-1]["kind"] == "node_died"


def test_a_first_checkpoint_that_is_half_written_does_not_cost_the_weights_to_start_from(tmp_path: Path):
    """Cause: whether to read them was decided by folders, not by checkpoints."""
    fit(settings("parallel", executor="local", run_dir=str(tmp_path / "base")))
    started = {"init_from": str(tmp_path / "base")}
    config = settings("parallel", executor="local", model=started, run_dir=str(tmp_path / "run"))
    cut_short(config, evaluations=3)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints" / "000001").mkdir(parents=True)
    resumed = fit({**config, "resume": True})
    assert figures(resumed) == figures(fit({**config, "run_dir": str(tmp_path / "alone")}))
