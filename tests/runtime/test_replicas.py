"""Replicas of a stage: the weights of a plain loop over their shares, bit for bit, whatever dies.

The oracle is the plain loop, which computes one share after the other in one process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from disturbed import check
from further import further

from distblock import BlockTrainer
from distblock.config import make_config
from distblock.errors import InputError
from distblock.preparation import prepare
from distblock.runtime.faults import Fault, fail_at

DATA: dict[str, Any] = {"batch_size": 96, "fraction": 0.5}
RUNS: dict[str, dict[str, Any]] = {
    "two": {"replicas": 2, "regime": {"epochs": 2}},
    # 97 + 96 + ... do not divide by 3: the first replicas take one sample more.
    "three": {"replicas": 3, "regime": {"epochs": 1}, "data": {**DATA, "batch_size": 97, "augment": ["crop", "flip"]}},
    "microbatches": {
        "replicas": 2,
        "regime": {"epochs": 2},
        "data": {**DATA, "microbatch_size": 32},
        "objective": {"multiplier_step": 1.0, "multiplier_every": 2},
        "optimizer": {"name": "adam", "lr": 0.001, "clip_norm": 1.0},
    },
    "wavefront": {"replicas": 2, "regime": {"name": "wavefront", "epochs": 1, "laps": 2}},
    "end-to-end": {"replicas": 4, "regime": {"name": "end-to-end", "epochs": 1}},
    "two-workers": {"replicas": 2, "regime": {"epochs": 1}, "resources": {"workers": 2}},
}


def values(name: str, **changes: Any) -> dict[str, Any]:
    few = {"recovery": {"kept_bytes": 300_000}, "channel": {"microbatches_per_call": 1}}
    return {"data": DATA, **few, **RUNS[name], **changes}


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("name", ["microbatches", further("wavefront"), further("three"), further("end-to-end")])
def test_replicas_come_to_the_weights_of_a_loop_over_their_shares(name: str):
    check(values(name))


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("two", [fail_at(1, 1, 2, "kill"), Fault(worker=0, turn=9, replica=1)]),
        further("microbatches", [Fault(worker=2, turn=9, replica=1, kind="segfault", moment="before")]),
        further("wavefront", [Fault(worker=1, turn=8, replica=1, moment="stored")]),
    ],
)
def test_a_dead_replica_restarts_its_stages_group_alone(name: str, faults: list[Fault]):
    failures = check(values(name), *faults)
    assert {failure.kind for failure in failures} == {"worker_died"}


@pytest.mark.further
@pytest.mark.usefixtures("shared_ray")
def test_a_frozen_replica_is_noticed_though_the_others_wait_for_it():
    config = values("two", recovery={"deadline_s": 4.0})
    [failure] = check(config, Fault(worker=1, turn=8, replica=1, kind="freeze"))
    assert failure.kind == "worker_froze"


@pytest.mark.usefixtures("shared_ray")
def test_every_replica_counts_in_the_summary_and_on_the_edges(tmp_path: Path):
    BlockTrainer({**values("two"), "run_dir": str(tmp_path / "run")}).fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["replicas"], summary["num_workers"]) == (2, 6)
    steps = 2 * prepare(make_config(values("two"))).plan.steps_per_epoch
    assert summary["edges"][0]["hops"] >= 2 * steps
    # As many bytes as without: each hop carries a share.
    BlockTrainer({**values("two", replicas=1), "run_dir": str(tmp_path / "alone")}).fit()
    alone = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert [edge["wire_bytes"] for edge in summary["edges"]] == [edge["wire_bytes"] for edge in alone["edges"]]


@pytest.mark.usefixtures("shared_ray")
def test_a_run_that_was_cut_short_goes_on_with_as_many_replicas_or_others(tmp_path: Path):
    config = values("two", checkpoint={"every_microbatches": 4}, run_dir=str(tmp_path / "run"))
    evaluations = iter(range(3))

    def cut(stage: int, accuracy: float) -> None:
        if next(evaluations, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BlockTrainer(config, on_evaluation=cut).fit()
    shutil.copytree(tmp_path / "run", tmp_path / "others")
    alone = BlockTrainer({**config, "executor": "local", "run_dir": str(tmp_path / "alone")}).fit().metrics
    again = BlockTrainer({**config, "executor": "local", "resume": True}).fit().metrics
    assert alone is not None
    assert again is not None
    assert [s["weights_sha256"] for s in again["stages"]] == [s["weights_sha256"] for s in alone["stages"]]
    others = {**config, "executor": "local", "replicas": 3, "resume": True, "run_dir": str(tmp_path / "others")}
    metrics = BlockTrainer(others).fit().metrics
    assert metrics is not None
    assert metrics["replicas"] == 3
    # Shares differ, and so do BatchNorm's statistics; what is learnt does not.
    for stage, other in zip(metrics["stages"], again["stages"], strict=True):
        assert abs(stage["train_loss"] - other["train_loss"]) < 0.1 * other["train_loss"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regime": {"name": "asynchronous"}}, "replicas: expected 1 in the asynchronous regime, got 2"),
        ({"regime": {"name": "sequential", "inputs": "cache"}}, "replicas: expected 1 with regime.inputs cache"),
        ({"replicas": 97}, "got 97 replicas for microbatches of 96"),
        ({"model": {"sync_batchnorm": True}}, "model.sync_batchnorm: expected workers with GPUs"),
        ({"resources": {"gpus_per_worker": 0.5}}, "replicas: expected whole GPUs a worker, got 2 .* 0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        make_config(values("two", **changes))


def test_every_microbatch_needs_a_sample_for_each_replica():
    config = make_config({"replicas": 20, "data": {"batch_size": 64}})
    with pytest.raises(InputError, match="got 20 replicas and a validation microbatch of 16"):
        prepare(config)
