"""Jobs on hosts that share nothing but an S3-compatible server: the plain loop's weights, and who counted which bytes.

The last host has no Ray node. From there jobs are sent, and on it runs the storage, with data and runs; so whatever the
others send and it does not receive went between them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from further import further

from cluster.hosts import Counters, Hosts, HostSettings, hosts, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

KEYS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-theirs",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address=sys.argv[1], port=9000, verbose=False).start()
print("listening", flush=True)
threading.Event().wait()
"""
UPLOAD = """
import sys
from pyarrow import fs
storage, folder = fs.FileSystem.from_uri(sys.argv[2])
storage.create_dir(folder)
fs.copy_files(sys.argv[1], folder, destination_filesystem=storage)
"""
READ = """
import json, sys
import pyarrow.parquet as pq
from distblock.runs import RunDirectory
run = RunDirectory.at(sys.argv[1])
hops = pq.read_table(run.path("hops.parquet"), filesystem=run.filesystem, columns=["edge", "wire_bytes"])
print(json.dumps({"summary": run.read_json("summary.json"), "hops": hops.to_pylist()}))
"""

DEMO = {"regime.epochs": "2"}
CIFAR10 = {"data.name": "parquet", "data.batch-size": "50", "regime.epochs": "1"}

OVERHEAD = 1.5
"""Most that hosts exchange, over what edges put on the wire: headers, calls and heartbeats, the job's code, reports,
and states on their way to the driver come to some MB, whatever the run's size."""


@dataclass(frozen=True)
class Fleet:
    """Hosts with Ray nodes, and one without."""

    hosts: Hosts
    outside: int

    def uri(self, name: str) -> str:
        """Of a folder on the storage."""
        server = quote(f"http://{self.hosts.addresses[self.outside]}:9000", safe="")
        return f"s3://bucket/{name}?endpoint_override={server}&region=us-east-1&allow_bucket_creation=true"

    def run(self, *arguments: str) -> str:
        """Output of a Python on the host outside."""
        done = self.hosts.run([sys.executable, *arguments], host=self.outside, capture_output=True, timeout_s=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """Bytes that interfaces counted.

    Attributes:
        between: by the hosts with Ray nodes, from each other.
        stored: by the host outside, in both directions.
    """

    between: int
    stored: int


@pytest.fixture(scope="module", params=[further(4), 2], ids=["four", "two"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with_nodes = [HostSettings(cpus=4 // request.param)] * request.param
    outside = len(with_nodes)
    with hosts([*with_nodes, HostSettings(cpus=None)], environment=KEYS, dashboard=True) as fleet:
        command = [sys.executable, "-c", SERVE, fleet.addresses[outside]]
        server = fleet.popen(command, host=outside, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        yield Fleet(fleet, outside)
        server.kill()
        server.communicate()


def plain_weights(settings: dict[str, str], folder: Path) -> list[str]:
    """Oracle: the plain loop in one process, by the same flags."""
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "distblock", "train", "--executor", "local", "--run-dir", str(folder / "plain")]
    subprocess.run([*command, *flags], capture_output=True, check=True)
    return weights(json.loads((folder / "plain" / "summary.json").read_text()))


def weights(summary: dict[str, Any]) -> list[str]:
    return [stage["weights_sha256"] for stage in summary["stages"]]


def submitted(fleet: Fleet, name: str, settings: dict[str, str]) -> tuple[dict[str, Any], Exchanged]:
    """A run as a job, to its end: the summary, and what it took from the network."""
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    address = f"http://{fleet.hosts.addresses[0]}:8265"
    folder = fleet.hosts.path(fleet.outside, f"/tmp/{name}")
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "distblock", "submit", "--address", address, "--follow", "--name", name),
        *("--python", sys.executable, "--working-dir", f"/tmp/{name}"),
        *("--", "--resources.strategy", "SPREAD", "--run-dir", fleet.uri(name), *flags),
    ]
    job = fleet.hosts.popen(command, host=fleet.outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log, before = "", []
    assert job.stdout is not None
    for line in job.stdout:
        log += line
        if line.startswith("network "):
            # The line has been measured, by bytes that are no edge's; workers start after the last.
            before = counters(fleet)
    assert job.wait() == 0, log
    assert before, log
    *moved, storage = [now - earlier for now, earlier in zip(counters(fleet), before, strict=True)]
    between = sum(each.tx_bytes for each in moved) - storage.rx_bytes
    read = json.loads(fleet.run("-c", READ, fleet.uri(name)))
    check_hops(read["summary"], read["hops"])
    return read["summary"], Exchanged(between=between, stored=storage.tx_bytes + storage.rx_bytes)


def counters(fleet: Fleet) -> list[Counters]:
    """Of every host; the one outside is the last."""
    return [fleet.hosts.counters(host) for host in range(fleet.outside + 1)]


def check_hops(summary: dict[str, Any], hops: list[dict[str, Any]]) -> None:
    """The log of hops and the summary tell of the same bytes."""
    for edge in (summary["data_edge"], *summary["edges"]):
        assert sum(row["wire_bytes"] for row in hops if row["edge"] == edge["name"]) == edge["wire_bytes"]


def compare(title: str, summary: dict[str, Any], exchanged: Exchanged) -> None:
    """Print what edges carried from host to host beside what interfaces counted, and hold the one to the other."""
    edges = [summary["data_edge"], *summary["edges"]]
    # An edge lies between two hosts, or within one: Ray spreads the workers as it likes.
    assert all(edge["cross_node_hops"] in (0, edge["hops"]) for edge in edges)
    across = [edge for edge in edges if edge["cross_node_hops"]]
    payload, wire = (sum(edge[key] for edge in across) for key in ("payload_bytes", "wire_bytes"))
    print(f"\n{title}\n{'edge':<20}{'hops':>8}{'payload bytes':>16}{'wire bytes':>16}")
    for edge in edges:
        where = "" if edge in across else "   on one host"
        print(f"{edge['name']:<20}{edge['hops']:>8}{edge['payload_bytes']:>16,}{edge['wire_bytes']:>16,}{where}")
    print(f"{'from host to host':<28}{payload:>16,}{wire:>16,}")
    ratio = exchanged.between / wire
    print(f"{'interfaces counted':<44}{exchanged.between:>16,}   {ratio:.3f} times the edges' wire bytes")
    print(f"{'to and from storage':<44}{exchanged.stored:>16,}")
    assert wire > 5_000_000
    assert payload <= exchanged.between < OVERHEAD * wire


@pytest.mark.further
def test_the_demo_as_a_job(fleet: Fleet, tmp_path: Path):
    summary, exchanged = submitted(fleet, "demo", DEMO)
    assert weights(summary) == plain_weights(DEMO, tmp_path)
    compare(f"digits on {fleet.outside} hosts", summary, exchanged)


def test_cifar10_from_the_storage_as_a_job(fleet: Fleet, small_cifar10: Path, tmp_path: Path):
    shutil.copytree(small_cifar10, fleet.hosts.path(fleet.outside, "/tmp/cifar10"))
    fleet.run("-c", UPLOAD, "/tmp/cifar10", fleet.uri("cifar10"))
    summary, exchanged = submitted(fleet, "cifar10-run", {**CIFAR10, "data.path": fleet.uri("cifar10")})
    assert weights(summary) == plain_weights({**CIFAR10, "data.path": str(small_cifar10)}, tmp_path)
    compare(f"CIFAR-10 on {fleet.outside} hosts", summary, exchanged)
    # Nothing of the data or the run lies on a host with a Ray node.
    for host in range(fleet.outside):
        # A checkout may lie there, and libraries bring files of their own.
        looked = ["find", "/tmp", "/root", "-name", "*.parquet", "-not", "-path", "*/site-packages/*"]
        found = fleet.hosts.run(looked, host=host, capture_output=True)
        assert found.stdout == ""
