"""The hosts together: made, used, hurt, and gone again."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster.hosts.files import View, make_view, mount_points
from cluster.hosts.leftovers import FOLDER_PREFIX
from cluster.hosts.links import DELAYED_MTU, Bridge, Counters, Link, address, counters
from cluster.hosts.namespaces import HostProcess, Namespaces
from cluster.hosts.nodes import start_node, wait_until_ready
from cluster.hosts.requirements import missing

PORT = 6379
GRACE_S = 10.0
"""Seconds that an interrupted command has to end."""


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """One host.

    Attributes:
        cpus: what Ray may give away, or None: a host without a Ray node (a storage server, say).
        resources: further resources of the node.
        environment: for the node and what runs on the host, over the fleet's.
        link: to the bridge.
    """

    cpus: int | None = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    link: Link = field(default_factory=Link)


class Hosts:
    """Running hosts; number 0 is the head. Made by `hosts`."""

    def __init__(self, settings: Sequence[HostSettings], bridge: Bridge, node: _Node) -> None:
        self.settings = tuple(settings)
        self._bridge = bridge
        self._node = node
        self._places: list[Namespaces] = []
        self._running: dict[int, subprocess.Popen[str]] = {}

    @property
    def address(self) -> str:
        """The head's, for ``ray.init`` and ``--address``."""
        return f"{address(0)}:{PORT}"

    @property
    def addresses(self) -> list[str]:
        """The hosts' own."""
        return [address(index) for index in range(len(self._places))]

    def popen(self, command: Sequence[str], *, host: int = 0, **options: Any) -> HostProcess:
        """Start a command on a host; signals to what is returned reach the command and its group.

        Args:
            command: program and arguments.
            host: where.
            options: of ``subprocess.Popen``. Without ``env`` the environment is this process's and the fleet's; the
                folder is the same as here; standard input is empty.
        """
        options = {"env": self.environment(host), "cwd": Path.cwd(), "stdin": subprocess.DEVNULL, **options}
        return self._places[host].popen(command, **options)

    def run(
        self,
        command: Sequence[str],
        *,
        host: int = 0,
        capture_output: bool = False,
        timeout_s: float | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; its output streams through, or is captured and returned.

        Ctrl-C interrupts the command first, which has ten seconds to end.

        Raises:
            subprocess.TimeoutExpired: it took longer; it was killed.
        """
        if capture_output:
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = self.popen(command, host=host, **options)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            _end(process, gently=isinstance(error, KeyboardInterrupt))
            raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def environment(self, host: int = 0) -> dict[str, str]:
        """What a command on the host finds in its environment: Ray's address and token, and this Python's commands."""
        return {**self._node.environment, **self.settings[host].environment, "RAY_ADDRESS": self.address}

    def path(self, host: int, path: Path | str) -> Path:
        """A host's file or folder, as it is reached from here while the host is there."""
        return self._places[host].root / Path(path).absolute().relative_to("/")

    def processes(self, host: int) -> list[int]:
        """Ids, as numbered here, of all that runs on a host."""
        return self._places[host].processes()

    def counters(self, host: int) -> Counters:
        """What the host's interface has counted so far."""
        return counters(self._places[host])

    def cut_link(self, host: int) -> None:
        """Silence: packets to and from the host vanish, and both sides see their interfaces up."""
        self._bridge.cut(host)

    def mend_link(self, host: int) -> None:
        """Undo `cut_link`."""
        self._bridge.mend(host)

    def kill_host(self, host: int) -> None:
        """SIGKILL for everything on it. Its files stay, as on a disk; its network is up, so peers see connections end.

        For a power failure, of which peers see nothing, `cut_link` first.
        """
        self._places[host].kill_all()
        process = self._running.pop(host, None)
        if process is not None:
            process.communicate()

    def start_again(self, host: int) -> None:
        """A fresh Ray node on a host, which joins the cluster; what still ran on the host is killed first."""
        self.kill_host(host)
        self.start([host])

    def start(self, indices: Sequence[int]) -> None:
        """Start Ray nodes, side by side, and wait until all are ready."""
        for index in indices:
            self._running[index] = self._node.start(self._places[index], index, self.settings[index])
        for index in indices:
            wait_until_ready(self._running[index])

    def make(self, view: View, names: Path) -> None:
        """Make the hosts, without their Ray nodes."""
        for index, host in enumerate(self.settings):
            self._places.append(Namespaces(f"host{index}", view.commands(names)))
            self._bridge.plug(self._places[index], index, host.link)

    def close(self) -> None:
        """End the hosts, and all that runs on them."""
        for place in self._places:
            place.close()
        for process in self._running.values():
            process.communicate()


@dataclass(frozen=True, kw_only=True)
class _Node:
    """How a node is started on any host."""

    environment: dict[str, str]
    object_store_bytes: int
    dashboard: bool

    def start(self, place: Namespaces, index: int, settings: HostSettings) -> subprocess.Popen[str]:
        arguments = [
            f"--node-ip-address={address(index)}",
            f"--num-cpus={settings.cpus or 0}",
            f"--object-store-memory={self.object_store_bytes}",
        ]
        if settings.resources:
            arguments.append(f"--resources={dict(settings.resources)}".replace("'", '"'))
        if index == 0:
            arguments += ["--head", f"--port={PORT}", f"--include-dashboard={str(self.dashboard).lower()}"]
        else:
            arguments.append(f"--address={address(0)}:{PORT}")
        return start_node(partial(place.popen), arguments, {**self.environment, **settings.environment})


@contextmanager
def hosts(
    settings: Sequence[HostSettings | int],
    *,
    environment: Mapping[str, str] | None = None,
    covered: Sequence[Path | str] | None = None,
    shared: Sequence[Path | str] = (),
    object_store_bytes: int = 2**30,
    dashboard: bool = False,
) -> Iterator[Hosts]:
    """Hosts with a Ray node each, joined to one cluster with token authentication; all gone afterwards.

    Args:
        settings: one a host, the head first; a number is so many CPUs on an unlimited link.
        environment: for all nodes and commands, over this process's (``RAY_health_check_period_ms``, say).
        covered: folders over which each host has an empty one of its own; by default ``./runs``, ``/tmp`` and the
            user's cache.
        shared: folders that all hosts and this machine share, covered or not.
        object_store_bytes: of each node.
        dashboard: whether the head runs the dashboard and the jobs API, at port 8265.

    Raises:
        ValueError: something that hosts need was to be covered, or there are Ray nodes, but none on the first host.
        RuntimeError: this machine cannot make hosts, or a node did not start.
    """
    full = [HostSettings(cpus=entry) if isinstance(entry, int) else entry for entry in settings]
    nodes = [index for index, host in enumerate(full) if host.cpus is not None]
    if nodes and nodes[0] != 0:
        raise ValueError(f"settings: expected the head's Ray node on the first host, got nodes on hosts {nodes} alone")
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")))
        view = make_view(covered=covered, shared=[*shared, folder])
        stack.enter_context(mount_points(view))
        delayed = any(host.link.delay_s for host in full)
        bridge = stack.enter_context(closing(Bridge(DELAYED_MTU if delayed else None)))
        node = _node(folder, environment or {}, object_store_bytes, dashboard)
        fleet = stack.enter_context(closing(Hosts(full, bridge, node)))
        fleet.make(view, _names(folder, len(full)))
        fleet.start(nodes[:1])
        fleet.start(nodes[1:])
        yield fleet


def _node(folder: Path, environment: Mapping[str, str], object_store_bytes: int, dashboard: bool) -> _Node:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    theirs = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return _Node(
        environment={**theirs, **ours, **environment}, object_store_bytes=object_store_bytes, dashboard=dashboard
    )


def _names(folder: Path, num_hosts: int) -> Path:
    names = folder / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{address(index)} host{index}" for index in range(num_hosts))]
    names.write_text("\n".join([*lines, ""]))
    return names


def _end(process: HostProcess, *, gently: bool) -> None:
    if gently:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
    process.kill()
    process.wait()
