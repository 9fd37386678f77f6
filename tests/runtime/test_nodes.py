"""Nodes that die or fall silent in the middle of a run: it goes back to its last checkpoint, and loses nothing.

Hosts are network namespaces with a Ray node each. The oracle is the plain loop.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from further import further

from cluster.hosts import Hosts, hosts, missing
from distblock import BlockTrainer

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""A node's death surfaces within seconds, instead of 15."""

REGIMES: dict[str, dict[str, Any]] = {
    "parallel": {"epochs": 25},
    "wavefront": {"name": "wavefront", "laps": 3, "epochs": 5},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Weights from the plain loop, of a regime."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def train(name: str) -> list[str]:
        config = {
            "executor": "local",
            "data": {"batch_size": 96},
            "regime": {**REGIMES[name], "name": {"wavefront": "multi-lap"}.get(name, name)},
            "run_dir": str(folder / name),
        }
        metrics = BlockTrainer(config).fit().metrics
        assert metrics is not None
        return [stage["weights_sha256"] for stage in metrics["stages"]]

    return train


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(request.param, environment=SOON, shared=[tmp_path]) as running:
        yield running


def train_and(hurt: Callable[[], None], mend: Callable[[], None] | None, fleet: Hosts, folder: Path, regime: str):
    """Train, hurt the cluster once there is a checkpoint, mend it once the run says that it waits; summary and log."""
    flags = [part for key, value in REGIMES[regime].items() for part in (f"--regime.{key}", str(value))]
    command = [*(sys.executable, "-m", "distblock", "train", "--address", fleet.address, "--run-dir", "run")]
    command += [*("--data.batch-size", "96", "--checkpoint.every-microbatches", "20"), *flags]
    command += ["--resources.strategy", "SPREAD"]
    process = fleet.popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    checkpoints = folder / "run" / "checkpoints"
    log, is_hurt = "", False
    for line in process.stderr:
        log += line
        if not is_hurt and any(checkpoints.glob("*/manifest.json")):
            is_hurt = True
            hurt()
        elif is_hurt and mend is not None and re.search("waiting for .* bundles", line):
            mend()
            mend = None
    assert process.wait(timeout=120) == 0, log
    assert is_hurt, log
    return json.loads((folder / "run" / "summary.json").read_text()), log


def check(summary: dict[str, Any], expected: list[str]) -> dict[str, Any]:
    assert [stage["weights_sha256"] for stage in summary["stages"]] == expected
    [failure] = [failure for failure in summary["failures"] if failure["kind"] == "node_died"]
    assert failure["place"].startswith("checkpoint")
    assert failure["held_up_s"] > 0
    return failure


@pytest.mark.parametrize("fleet", [[2, 2, 2]], indirect=True, ids=["three"])
@pytest.mark.parametrize("regime", ["parallel", further("wavefront")])
def test_a_node_dies_and_the_others_go_on(fleet: Hosts, tmp_path: Path, alone: Callable[[str], list[str]], regime: str):
    summary, log = train_and(lambda: fleet.kill_host(2), None, fleet, tmp_path, regime)
    check(summary, alone(regime))
    assert "all stages go back to checkpoint" in log


@pytest.mark.further
@pytest.mark.parametrize("fleet", [[2, 2]], indirect=True, ids=["two"])
def test_without_room_it_waits_for_a_node_to_return(fleet: Hosts, tmp_path: Path, alone: Callable[[str], list[str]]):
    summary, log = train_and(lambda: fleet.kill_host(1), lambda: fleet.start_again(1), fleet, tmp_path, "parallel")
    check(summary, alone("parallel"))
    assert "waiting for 4 bundles" in log


@pytest.mark.further
@pytest.mark.parametrize("fleet", [[2, 2, 2]], indirect=True, ids=["three"])
def test_a_link_that_is_cut_and_stays_silent(fleet: Hosts, tmp_path: Path, alone: Callable[[str], list[str]]):
    summary, _ = train_and(lambda: fleet.cut_link(2), None, fleet, tmp_path, "parallel")
    check(summary, alone("parallel"))
