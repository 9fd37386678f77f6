"""A training on several hosts of one machine, as a benchmark needs it: fresh hosts each time, and their lines' rate.

The hosts come from ``cluster.hosts``, which a checkout has and the package does not.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pyarrow import dataset

from distblock.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from cluster.hosts import Hosts

CHECKOUT = Path(__file__).parents[2]

LIMIT_S = 600.0
"""Seconds after which a training on hosts is given up."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}

# The first half second does not count: what the token bucket lets through at once, and TCP's start.
_RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
peer, _ = server.accept()
begun, counted, first, last = time.perf_counter(), 0, None, None
while data := peer.recv(1 << 20):
    now = time.perf_counter()
    if first is not None:
        counted, last = counted + len(data), now
    elif now > begun + 0.5:
        first = now
print(counted / (last - first))
"""
_SEND = """
import socket, sys, time
peer, block, end = socket.create_connection((sys.argv[1], 5000)), bytes(1 << 18), time.perf_counter() + 2.5
while time.perf_counter() < end:
    peer.sendall(block)
"""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A training that has ended.

    Attributes:
        summary: its ``summary.json``.
        line_rate_bytes_per_s: of a plain TCP stream between two of the hosts, after it; None on one host, and where
            the run itself has measured its lines.
    """

    summary: dict[str, Any]
    line_rate_bytes_per_s: float | None


def bits_per_s(rate: str, option: str = "--rates") -> float:
    """Of a rate as tc writes it; ``option`` is where it was given.

    Raises:
        InputError: it is of another form.
    """
    if rate == "none":
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    if match is None:
        raise InputError(f"{option}: expected rates such as 100mbit or 1gbit, or none, got {rate}")
    return float(match[1]) * _UNITS[match[2]]


def check_hosts() -> None:
    """Whether hosts can be made here; `train_on_hosts` takes it for granted.

    Raises:
        InputError: this is no checkout, or the machine cannot make hosts.
    """
    if not (CHECKOUT / "cluster" / "hosts").is_dir():
        raise InputError(f"bench: expected a checkout, with cluster/hosts beside distblock, got {CHECKOUT} without it")
    if str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    from cluster.hosts import missing

    if (reason := missing()) is not None:
        raise InputError(f"bench: expected a machine that can make hosts (cluster/hosts), got: {reason}")


def train_on_hosts(
    flags: Sequence[str],
    *,
    cpus: Sequence[int],
    rate: str | None,
    delay_s: float,
    shared: Path | None,
    then: Callable[[Path], object] = lambda run: None,  # noqa: ARG005
) -> Ran:
    """``distblock train`` on the head of hosts that are made for it.

    Args:
        flags: of the training, beside address and run directory.
        cpus: of each host, a Ray node each.
        rate: of each host's link, as tc writes it; none: as fast as memory is copied.
        delay_s: seconds each way on each host's link: two hosts are twice that apart.
        shared: a folder that all of them see.
        then: is given the run's directory, which is gone afterwards.

    Raises:
        RunFailedError: the training failed; the message has its last words.
    """
    from cluster.hosts import HostSettings, Link, hosts

    settings = [HostSettings(cpus=own, link=Link(rate=rate, delay_s=delay_s)) for own in cpus]
    with (
        tempfile.TemporaryDirectory(prefix="distblock-bench-") as folder,
        hosts(settings, shared=[Path(folder), *([shared] if shared else [])]) as fleet,
    ):
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "distblock", "train", "--address", fleet.address, "--run-dir", str(run)]
        done = fleet.run([*command, *flags], cwd=CHECKOUT, capture_output=True, timeout_s=LIMIT_S)
        if done.returncode:
            raise RunFailedError(f"bench: a training on {len(cpus)} hosts failed: {done.stderr[-500:]}")
        then(run)
        summary = json.loads((run / "summary.json").read_text())
        is_known = any(edge["line_rate_bytes_per_s"] for edge in (summary["data_edge"], *summary["edges"]))
        rate_there = None if len(cpus) == 1 or is_known else line_rate(fleet)
        return Ran(summary=summary, line_rate_bytes_per_s=rate_there)


def line_rate(fleet: Hosts) -> float:
    """Bytes a second of a TCP stream from the head to the next host."""
    address = fleet.addresses[1]
    receiver = fleet.popen([sys.executable, "-c", _RECEIVE, address], host=1, stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    fleet.run([sys.executable, "-c", _SEND, address], host=0)
    return float(receiver.communicate()[0])


def cut_images(folder: str, to: Path, *, train: int, test: int) -> None:
    """Copy the first images of a Parquet data set, so that evaluations do not outlast a short training.

    Raises:
        InputError: a part is not there, or is shorter.
    """
    for name, num_images in (("train.parquet", train), ("test.parquet", test)):
        source = Path(folder) / name
        if not source.is_file():
            raise InputError(f"--data-path: expected a folder with train.parquet and test.parquet, got {folder}")
        table = dataset.dataset(source).head(num_images)
        if len(table) < num_images:
            raise InputError(f"{source}: expected {num_images} images or more, got {len(table)}")
        pq.write_table(table, to / name)
