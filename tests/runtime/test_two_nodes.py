"""Stages on two Ray nodes: what is stored on one is read on the other through the object store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import Cluster, started_cluster
from further import further
from ray.util import get_node_ip_address

from distblock import BlockTrainer

ARGUMENTS = "--data.batch-size 96 --data.fraction 0.5 --regime.epochs 1 --regime.laps 2"


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started_cluster(tmp_path_factory.mktemp("two-nodes"), [2, 3]) as cluster:
        yield cluster


def train(cluster: Cluster, folder: Path, arguments: str) -> dict[str, Any]:
    """A run in the folder; its summary."""
    command = [sys.executable, "-m", "distblock", "train", "--address", cluster.address, "--run-dir", "run"]
    done = subprocess.run(
        [*command, *arguments.split()],
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "summary.json").read_text())


def weights_alone(folder: Path, **changes: Any) -> list[str]:
    """The plain loop's."""
    config = {"executor": "local", "data": {"batch_size": 96, "fraction": 0.5}, "run_dir": str(folder / "alone")}
    metrics = BlockTrainer({**config, **changes}).fit().metrics
    assert metrics is not None
    return [stage["weights_sha256"] for stage in metrics["stages"]]


@pytest.mark.parametrize("inputs", ["cache", further("frozen")])
def test_the_wavefront_on_two_nodes(two_nodes: Cluster, tmp_path: Path, inputs: str):
    # Ray gives a head at 127.0.0.1 the machine's own address.
    nodes = ["127.0.0.2", get_node_ip_address(), "127.0.0.2"]
    arguments = f"{ARGUMENTS} --regime.name wavefront --regime.inputs {inputs} --resources.nodes {' '.join(nodes)}"
    wave = train(two_nodes, tmp_path, arguments)
    # One stage at a time.
    regime = {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": inputs}
    assert [stage["weights_sha256"] for stage in wave["stages"]] == weights_alone(tmp_path, regime=regime)
    rows = pq.read_table(tmp_path / "run" / "timeline.parquet", columns=["worker", "node"]).to_pylist()
    # Data are read beside the first worker.
    assert {row["worker"]: row["node"] for row in rows} == {-1: nodes[0], **dict(enumerate(nodes))}


def test_a_row_of_replicas_lies_on_one_node_and_gradients_meet_over_the_network(two_nodes: Cluster, tmp_path: Path):
    arguments = "--data.batch-size 96 --data.fraction 0.5 --regime.epochs 1 --replicas 2 --resources.workers 2"
    summary = train(two_nodes, tmp_path, f"{arguments} --channel.transport worker")
    alone = weights_alone(tmp_path, replicas=2, regime={"epochs": 1})
    assert [stage["weights_sha256"] for stage in summary["stages"]] == alone
    # Two rows of two workers, each as large as a node: what is between stages does not cross.
    assert [edge["cross_node_hops"] for edge in summary["edges"]] == [0, 0]
    data = summary["data_edge"]
    assert data["cross_node_hops"] == data["same_node_hops"]
    assert data["past_store_hops"] == data["hops"] > 0
