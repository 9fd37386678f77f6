"""Workers that share a GPU train as the plain loop on that GPU does, and survive what the GPU does to them.

The oracle is `distblock.local` on the same GPU: one process, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import torch
from disturbed import check
from gpu import one_fault

from distblock import BlockTrainer
from distblock.errors import InputError, StageError
from distblock.evaluation import evaluate_run
from distblock.runs import RunDirectory
from distblock.runtime.faults import Fault

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("shared_ray"),
]

# Workers do not see the tests' folder.
ray.cloudpickle.register_pickle_by_value(one_fault)

DIGITS: dict[str, Any] = {"regime": {"epochs": 2}, "data": {"batch_size": 96, "fraction": 0.5}}
SHARE = {"gpus_per_worker": 0.2, "cpus_per_worker": 1}
EVERYTHING: dict[str, Any] = {
    "data": {"batch_size": 96, "microbatch_size": 32, "augment": ["crop", "flip"], "fraction": 0.5},
    "channel": {"codec": "bf16", "max_in_flight": 2},
    "model": {"channels_last": True},
    "objective": {"varying": True, "multiplier_step": 1.0, "multiplier_every": 3},
    "optimizer": {"name": "adam", "lr": 0.001, "clip_norm": 1.0},
}
LINEAR: dict[str, Any] = {"model": {"classifier": "linear"}}
RUNS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "two workers": {"resources": {"workers": 2}},
    "bf16, everything on": {**EVERYTHING, "precision": "bf16"},
    "fp16": {"precision": "fp16", "channel": {"codec": "fp16"}},
    "end-to-end": {"regime": {"name": "end-to-end", "epochs": 1}, "objective": {"tau": "inf"}},
    "sequential": {"regime": {"name": "sequential", "epochs": 1}},
    "sequential, one worker": {"regime": {"name": "sequential", "epochs": 1}, "resources": {"workers": 1}},
    "wavefront, cache": {"regime": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "cache"}},
    "wavefront, frozen": {"regime": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "frozen"}},
}


def summary(
    config: dict[str, Any], run_dir: Path, *, model: Callable[..., Any] | None = None, **changes: Any
) -> dict[str, Any]:
    resources = {**SHARE, **config.get("resources", {})}
    values = {**DIGITS, **config, "resources": resources, **changes, "run_dir": str(run_dir)}
    result = BlockTrainer(values, model=model).fit()
    assert result.metrics is not None
    return result.metrics


@pytest.mark.parametrize("name", RUNS)
def test_workers_train_as_the_plain_loop(name: str, tmp_path: Path):
    plain = {**RUNS[name], "resources": {}}
    regime = plain.get("regime", {})
    if regime.get("name") == "wavefront":
        plain["regime"] = {**regime, "name": "multi-lap"}
    alone = summary(plain, tmp_path / "local", executor="local")
    workers = summary(RUNS[name], tmp_path / "ray")
    assert _weights(workers) == _weights(alone)
    # An allocator of the CPU would show what the process is resident in, torch and Ray in it: far more.
    assert all(0 < each["peak_memory_bytes"] < 200e6 for each in workers["stages"])


def test_the_asynchronous_regime_trains(tmp_path: Path):
    run = summary({"regime": {"name": "asynchronous", "epochs": 8}, "data": {"batch_size": 96}}, tmp_path / "run")
    assert run["test_accuracy"] > 0.5


def test_a_run_on_a_gpu_is_evaluated_on_a_cpu(tmp_path: Path):
    whole = summary({}, tmp_path / "run")
    rows, best = evaluate_run(RunDirectory.at(tmp_path / "run"), part="test", path=None)
    assert best == whole["best_stage"]
    for row, stage in zip(rows, whole["stages"], strict=True):
        # A GPU's convolutions round to TF32, so a sample near a border may fall on its other side.
        assert row.accuracy == pytest.approx(stage["test_accuracy"], abs=0.02)


def test_a_killed_worker_is_replaced():
    small = {"recovery": {"kept_bytes": 300_000}, "channel": {"microbatches_per_call": 1}}
    config = {**DIGITS, **small, "resources": SHARE}
    [failure] = check(config, Fault(worker=1, turn=5, moment="computed"))
    assert failure.kind == "worker_died"


def test_a_device_that_fails_costs_a_worker(tmp_path: Path):
    """A real assertion on the device: every later call of that process to it fails."""
    flag = tmp_path / "flag"
    model = partial(one_fault.build, fail=partial(one_fault.assert_once, flag=flag))
    disturbed = summary(LINEAR, tmp_path / "faulty", model=model)
    assert flag.exists()
    [failure] = disturbed["failures"]
    assert failure["kind"] == "worker_lost_device"
    undisturbed = summary(LINEAR, tmp_path / "calm", model=model)
    assert undisturbed["failures"] == []
    assert _weights(disturbed) == _weights(undisturbed)


def test_a_full_device_ends_the_run(tmp_path: Path):
    with pytest.raises(StageError, match=r"stage 1.*memory"):
        summary(LINEAR, tmp_path / "run", model=partial(one_fault.build, fail=one_fault.fill))


def test_more_gpus_than_there_are(tmp_path: Path):
    with pytest.raises(InputError, match="GPU"):
        summary({"resources": {"gpus_per_worker": torch.cuda.device_count()}}, tmp_path / "run")


def _weights(summary: dict[str, Any]) -> list[str]:
    return [stage["weights_sha256"] for stage in summary["stages"]]
