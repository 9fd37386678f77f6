"""What nodes prove before workers start, and what is measured between them, on network namespaces.

Each host has its own empty folder over whatever is not shared, so a local path does not "work" by itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from data.samples import parquet_folder
from further import further

from cluster.hosts import Hosts, HostSettings, Link, hosts, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

RATE_BYTES_PER_S = 100e6 / 8

SETTINGS = [HostSettings(cpus=2, link=Link(rate="100mbit"))] * 2

SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""A node's death surfaces within seconds, instead of 15."""

SPREAD = ("--resources.strategy", "SPREAD", "--regime.epochs", "1", "--data.batch-size", "96")

DATA_WORKERS_ON_BOTH = (*SPREAD, "--resources.workers", "1", "--data.workers", "3", "--model.stages", "2")
"""Four processes fill two hosts of two CPUs each."""

OWN_FILESYSTEM = """
import sys
from pyarrow import fs
from ray.train import RunConfig
from distblock import BlockTrainer
config = {"address": sys.argv[1], "regime": {"epochs": 1}, "resources": {"strategy": "SPREAD"}}
config["data"] = {"batch_size": 96}
storage = fs.SubTreeFileSystem(sys.argv[2], fs.LocalFileSystem())
BlockTrainer(config, run_config=RunConfig(storage_path="bucket", name="run", storage_filesystem=storage)).fit()
"""


@dataclass(frozen=True)
class Fleet:
    """Two hosts, a folder that they share, and one that each has for itself."""

    hosts: Hosts
    shared: Path
    own: Path

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return self.hosts.run(command, cwd=self.shared, capture_output=True, timeout_s=300)

    def train(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "distblock", "train", "--address", self.hosts.address, *arguments)

    def own_of(self, host: int) -> Path:
        return self.hosts.path(host, self.own)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    shared, own = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("own")
    with hosts(SETTINGS, covered=[own], shared=[shared]) as running:
        yield Fleet(running, shared, own)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What it was refused with, in one line."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "expected node" in line]
    return line


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_directory_that_is_not_shared_is_refused(two: Fleet):
    line = refusal(two.train(*SPREAD, "--run-dir", f"{two.own}/run"))
    there = "run_dir: expected node 10.77.0.2 (host1) to see in {own}/run what the driver on 10.77.0.1 (host0)"
    assert there.format(own=two.own) in line
    assert f"got no {two.own}/run/.reach-" in line
    assert "s3://" in line
    assert left(two.own_of(0)) == left(two.own_of(1)) == set()


def test_a_folder_of_the_same_name_is_not_the_same_folder(two: Fleet):
    for name in ("config.yaml", "metrics.parquet"):
        (two.own_of(1) / "same").mkdir(exist_ok=True)
        (two.own_of(1) / "same" / name).write_text("of another run")
    line = refusal(two.train(*SPREAD, "--run-dir", f"{two.own}/same"))
    assert "run_dir: expected node 10.77.0.2 (host1)" in line
    assert left(two.own_of(1) / "same") == {"config.yaml", "metrics.parquet"}


@pytest.mark.parametrize("there", [further("nothing"), "another file"])
def test_data_that_is_not_shared_is_refused(two: Fleet, tmp_path: Path, there: str):
    real = parquet_folder(tmp_path / "real", num_train=200, num_test=100)
    shutil.copytree(real, two.own_of(0) / "data", dirs_exist_ok=True)
    expected, got = "2 files", "none"
    if there == "another file":
        other = parquet_folder(tmp_path / "other", num_train=190, num_test=100)
        shutil.copytree(other, two.own_of(1) / "data", dirs_exist_ok=True)
        sizes = [(folder / "train.parquet").stat().st_size for folder in (real, other)]
        expected, got = (f"{size:,} bytes" for size in sizes)
        expected = f"train.parquet: {expected}"
    data = ("--data.name", "parquet", "--data.path", f"{two.own}/data")
    run = two.shared / f"data-{there.replace(' ', '-')}"
    line = refusal(two.train(*DATA_WORKERS_ON_BOTH, *data, "--run-dir", str(run)))
    assert f"data.path: expected node 10.77.0.2 (host1) to see in {two.own}/data the files" in line
    assert f"expected {expected}, got {got};" in line
    assert not run.exists()


def test_what_is_shared_is_proved_and_lines_are_measured(two: Fleet):
    parquet_folder(two.shared / "data", num_train=200, num_test=100)
    data = ("--data.name", "parquet", "--data.path", str(two.shared / "data"))
    done = two.train(*DATA_WORKERS_ON_BOTH, *data, "--run-dir", "data-shared")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("network ")]
    assert re.search(r"edge data->0$", line)
    check_edges(json.loads((two.shared / "data-shared" / "summary.json").read_text()))
    assert not [name for name in left(two.shared / "data-shared") if name.startswith(".reach")]


def test_a_file_system_of_the_users_own_goes_along(two: Fleet):
    done = two.python("-c", OWN_FILESYSTEM, two.hosts.address, str(two.shared))
    assert done.returncode == 0, done.stderr
    summary = json.loads((two.shared / "bucket" / "run" / "summary.json").read_text())
    crossed = check_edges(summary)
    # Stages and the data worker alternate between the hosts, or lie in two halves: a line is measured once.
    said = [line for line in done.stderr.splitlines() if line.startswith("network ")]
    assert len(said) == len({(edge["sender_node"], edge["receiver_node"]) for edge in crossed})
    for line in said:
        print(line)
        assert re.search(r"10\.77\.0\.\d \(eth0, [\d.]+ Gbit/s\) -> 10\.77\.0\.\d \(eth0, ", line)
        assert "Mbit/s measured" in line


@pytest.mark.further
def test_a_node_that_comes_later_proves_it_too(tmp_path: Path):
    with hosts([2, 2, 2], environment=SOON, shared=[tmp_path]) as fleet:
        # The third host has another folder there; it joins when the second has died.
        assert fleet.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], host=2).returncode == 0
        fleet.kill_host(2)
        command = [*(sys.executable, "-m", "distblock", "train", "--address", fleet.address, "--run-dir", "run")]
        command += ["--regime.epochs", "25", "--data.batch-size", "96", "--checkpoint.every-microbatches", "20"]
        process = fleet.popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        log = ""
        steps = [(r"epoch +4/", lambda: fleet.kill_host(1)), (r"waiting for", lambda: fleet.start_again(2))]
        assert process.stderr is not None
        for line in process.stderr:
            log += line
            if steps and re.search(steps[0][0], line):
                steps.pop(0)[1]()
        assert process.wait(timeout=120) == 2, log
    assert "all stages go back to checkpoint" in log
    assert f"run_dir: expected node 10.77.0.3 (host2) to see in {tmp_path}/run what" in log
    assert "Traceback" not in log
    assert (tmp_path / "run" / "checkpoints").exists()


def check_edges(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The edges between the hosts; each has what was measured, and the others do not."""
    edges = [summary["data_edge"], *summary["edges"]]
    crossed = [edge for edge in edges if edge["sender_node"]]
    assert crossed
    for edge in edges:
        assert bool(edge["cross_node_hops"]) == (edge in crossed)
        rate = edge["line_rate_bytes_per_s"]
        if edge not in crossed:
            assert rate is edge["sender_interface"] is edge["receiver_interface"] is edge["line_share"] is None
            continue
        assert {edge["sender_node"], edge["receiver_node"]} == {"10.77.0.1", "10.77.0.2"}
        assert (edge["sender_interface"], edge["receiver_interface"]) == ("eth0", "eth0")
        print(edge["name"], rate, edge["line_share"])
        # A configured limit, measured: tc holds the links to it.
        assert 0.5 < rate / RATE_BYTES_PER_S < 1.3
        assert 0 < edge["line_share"] < 1
    return crossed
