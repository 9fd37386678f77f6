"""Stages on two Ray nodes: what is stored on one is read on the other through the object store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import Cluster, started_cluster

from distblock import BlockTrainer

ARGUMENTS = "--data.batch-size 96 --data.fraction 0.5 --regime.epochs 1 --regime.laps 2"


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started_cluster(tmp_path_factory.mktemp("two-nodes"), [2, 3]) as cluster:
        yield cluster


@pytest.mark.parametrize("inputs", ["cache", "frozen"])
def test_the_wavefront_on_two_nodes(two_nodes: Cluster, tmp_path: Path, inputs: str):
    arguments = (
        f"{ARGUMENTS} --regime.name wavefront --regime.inputs {inputs} --resources.strategy SPREAD --run-dir run"
    )
    done = subprocess.run(
        [*(sys.executable, "-m", "distblock", "train", "--address", two_nodes.address), *arguments.split()],
        cwd=tmp_path,
        env=two_nodes.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wave = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Oracle: the plain loop, one stage at a time.
    alone = BlockTrainer(
        {
            "executor": "local",
            "data": {"batch_size": 96, "fraction": 0.5},
            "regime": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": inputs},
            "run_dir": str(tmp_path / "alone"),
        }
    ).fit()
    assert alone.metrics is not None
    assert [stage["weights_sha256"] for stage in wave["stages"]] == [
        stage["weights_sha256"] for stage in alone.metrics["stages"]
    ]
    hops = pq.read_table(tmp_path / "run" / "hops.parquet").to_pandas()
    print(hops.columns.tolist(), hops.tail(8).to_string())


def test_a_row_of_replicas_lies_on_one_node_and_gradients_meet_over_the_network(two_nodes: Cluster, tmp_path: Path):
    arguments = "--data.batch-size 96 --data.fraction 0.5 --regime.epochs 1 --replicas 2"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "distblock", "train", "--address", two_nodes.address, "--run-dir", "run"),
            *arguments.split(),
            *("--resources.workers", "2"),
        ],
        cwd=tmp_path,
        env=two_nodes.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    alone = BlockTrainer(
        {
            "executor": "local",
            "replicas": 2,
            "data": {"batch_size": 96, "fraction": 0.5},
            "regime": {"epochs": 1},
            "run_dir": str(tmp_path / "alone"),
        }
    ).fit()
    assert alone.metrics is not None
    assert [stage["weights_sha256"] for stage in summary["stages"]] == [
        stage["weights_sha256"] for stage in alone.metrics["stages"]
    ]
    # Two rows of two workers, each as large as a node: what is between stages does not cross.
    assert [edge["cross_node_hops"] for edge in summary["edges"]] == [0, 0]
    assert summary["data_edge"]["cross_node_hops"] == summary["data_edge"]["same_node_hops"]
