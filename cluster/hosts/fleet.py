"""The hosts together: used, hurt and mended."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.hosts.files import View
from cluster.hosts.links import Bridge, Counters, address, counters
from cluster.hosts.namespaces import HostProcess, Namespaces
from cluster.hosts.nodes import PORT, FleetNodes, wait_until_ready
from cluster.hosts.settings import HostSettings

GRACE_S = 10.0
"""Seconds that an interrupted command has to end."""


class Hosts:
    """Running hosts; number 0 is the head. Made by `hosts`."""

    def __init__(self, settings: Sequence[HostSettings], bridge: Bridge, nodes: FleetNodes) -> None:
        self.settings = tuple(settings)
        self._bridge = bridge
        self._nodes = nodes
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
        return {**self._nodes.environment, **self.settings[host].environment, "RAY_ADDRESS": self.address}

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
            self._running[index] = self._nodes.start(self._places[index], index, self.settings[index])
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


def _end(process: HostProcess, *, gently: bool) -> None:
    if gently:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
    process.kill()
    process.wait()
