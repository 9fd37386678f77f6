"""A run over two hosts: the plain loop's weights, and the bytes that their interfaces counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.hosts import Hosts, HostSettings, Link, hosts, missing
from distblock import BlockTrainer
from distblock.pages import read_run
from distblock.report.times import exposed_share
from distblock.runs import RunDirectory

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

EPOCHS = 2


@dataclass(frozen=True)
class SlowHosts:
    """Three hosts with slow links, and a folder that they share."""

    hosts: Hosts
    folder: Path

    def train(self, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """By two workers and a data worker, a host each; the run is in the folder."""
        words = [*("--address", self.hosts.address, "--resources.strategy", "STRICT_SPREAD", "--run-dir", name)]
        words += [*("--model.stages", "2", "--resources.workers", "2", "--regime.epochs", "1"), *flags]
        command = [sys.executable, "-m", "distblock", "train", *words]
        return self.hosts.run(command, cwd=self.folder, timeout_s=300, capture_output=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of the stages after the plain loop."""
    run_dir = str(tmp_path_factory.mktemp("plain") / "run")
    result = BlockTrainer({"executor": "local", "regime": {"epochs": EPOCHS}, "run_dir": run_dir}).fit()
    assert result.metrics is not None
    return [stage["weights_sha256"] for stage in result.metrics["stages"]]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowHosts]:
    folder = tmp_path_factory.mktemp("slow")
    with hosts([HostSettings(cpus=1, link=Link(rate="5mbit"))] * 3, shared=[folder]) as fleet:
        yield SlowHosts(fleet, folder)


@pytest.fixture(params=[Link(), Link(rate="100mbit", delay_s=0.0125)], ids=["unlimited", "100mbit-12.5ms"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosts]:
    with hosts([HostSettings(cpus=2, link=request.param)] * 2, shared=[tmp_path]) as fleet:
        yield fleet


@pytest.mark.further
def test_digits_over_two_hosts(two: Hosts, tmp_path: Path, plain: list[str]):
    arguments = f"train --address {two.address} --resources.strategy SPREAD --regime.epochs {EPOCHS} --run-dir run"
    run = two.popen([sys.executable, "-m", "distblock", *arguments.split()], cwd=tmp_path, stderr=subprocess.PIPE)
    log, before = "", []
    assert run.stderr is not None
    for line in run.stderr:
        log += line
        if line.startswith("network "):
            # The line has been measured, by bytes that are no edge's; workers start after the last.
            before = [two.counters(host) for host in (0, 1)]
    assert run.wait() == 0, log
    assert before, log
    moved = [two.counters(host) - earlier for host, earlier in enumerate(before)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["weights_sha256"] for stage in summary["stages"]] == plain

    # What one host sends the other receives; the link loses nothing for good. They are not read at one moment.
    assert moved[0].tx_bytes == pytest.approx(moved[1].rx_bytes, rel=0.05)
    hops = pq.read_table(tmp_path / "run" / "hops.parquet").to_pandas()
    logged = hops.groupby("edge")["wire_bytes"].sum()
    edges = [summary["data_edge"], *summary["edges"]]
    assert logged.to_dict() == {edge["name"]: edge["wire_bytes"] for edge in edges}
    # An edge lies between two hosts, or within one: Ray spreads the workers as it likes.
    assert all(edge["cross_node_hops"] in (0, edge["hops"]) for edge in edges)
    across = [edge["name"] for edge in edges if edge["cross_node_hops"]]
    wire = int(logged[across].sum())
    assert wire > 5_000_000
    counted = moved[0].tx_bytes + moved[1].tx_bytes
    print(f"\n{two.settings[0].link}: hosts sent {[m.tx_bytes for m in moved]}, together {counted} bytes")
    print(
        f"edges {', '.join(across)} put {wire} bytes on the wire, the interfaces counted {counted / wire - 1:.1%} more"
    )
    # Above: headers, Ray's calls and heartbeats, code, reports, and states on their way to the driver.
    assert 1 < counted / wire < 1.5


@pytest.mark.further
def test_who_waits_for_a_slow_link_goes_on_computing_and_why_names_the_link(slow: SlowHosts):
    """A step takes some 20 ms, an activation 400 on its way; the store's client once made one wait for the other."""
    done = slow.train("fp32", "--data.fraction", "0.5")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(slow.folder / "fp32" / "timeline.parquet").to_pandas()
    second = rows[rows["worker"] == 1]
    computing_s = (second["finished_s"] - second["started_s"]).sum()
    waiting_s = (second["fetched_s"] - second["asked_s"]).sum()
    assert computing_s < waiting_s / 3
    run = read_run(RunDirectory.at(slow.folder / "fp32"))
    verdict = run.verdict
    assert verdict is not None
    # What the report calls exposed is what is lost against the slowest worker's computing.
    assert exposed_share(run.summary) == pytest.approx(1 - verdict.bound_s / verdict.measured_s, abs=0.05)
    assert verdict.causes[0].kind == "edge"
    assert "edge 0->1" in verdict.causes[0].where


def test_auto_takes_a_codec_and_a_transport_for_the_edge_between_two_hosts(slow: SlowHosts, tmp_path: Path):
    done = slow.train("auto", "--data.fraction", "0.2", "--channel.codec", "auto")
    assert done.returncode == 0, done.stderr
    assert "edge 0->1: bf16; over" in done.stderr
    channel = RunDirectory.at(slow.folder / "auto").read_config().channel
    assert (channel.codec, channel.edge_codecs) == ("fp32", {1: "bf16"})
    summary = json.loads((slow.folder / "auto" / "summary.json").read_text())
    [edge] = summary["edges"]
    assert edge["wire_bytes"] < 0.6 * edge["payload_bytes"]
    # From worker to worker, all but calls that are small, such as those of the digits themselves.
    assert (edge["cross_node_hops"], edge["past_store_hops"]) == (edge["hops"], pytest.approx(edge["hops"], rel=0.3))
    assert summary["data_edge"]["past_store_hops"] == 0
    config = {"executor": "local", "model": {"stages": 2}, "data": {"fraction": 0.2}, "regime": {"epochs": 1}}
    plain = BlockTrainer({**config, "channel": {"codec": "bf16"}, "run_dir": str(tmp_path / "plain")}).fit().metrics
    assert plain is not None
    assert [s["weights_sha256"] for s in summary["stages"]] == [s["weights_sha256"] for s in plain["stages"]]
