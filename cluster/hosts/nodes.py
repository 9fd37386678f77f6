"""Ray nodes as child processes, ready when ``ray start`` says so."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster.hosts.links import address
from cluster.hosts.namespaces import Namespaces
from cluster.hosts.settings import HostSettings

PORT = 6379
"""Of a fleet's head."""

RAY = str(Path(sys.executable).parent / "ray")

Popen = Callable[..., subprocess.Popen[str]]


def start_node(popen: Popen, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``ray start --block``; it has begun, but is not ready, on return.

    Args:
        popen: ``subprocess.Popen``, or a host's.
        arguments: what makes it a head or a worker, its address, its resources.
        environment: all of its environment, but for what Ray starts ahead.
    """
    command = [RAY, "start", *arguments, "--disable-usage-stats", "--block"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # Ray would start a process for each CPU ahead; stage workers have an environment of their own, and never take one.
    return popen(command, env={"RAY_prestart_worker_first_driver": "0", **environment}, text=True, **streams)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Wait for a node's last line before it blocks.

    Raises:
        RuntimeError: it ended before; the message has its output.
    """
    output: IO[str] | None = process.stdout
    assert output is not None
    said = ""
    for line in output:
        said += line
        if "--block" in line:
            return
    raise RuntimeError(f"ray start ended with status {process.wait()}: {said}")


@dataclass(frozen=True, kw_only=True)
class FleetNodes:
    """How a fleet's nodes are started.

    Attributes:
        environment: of every node and command; Ray's token among it.
        object_store_bytes: of each node.
        dashboard: whether the head runs it.
    """

    environment: dict[str, str]
    object_store_bytes: int
    dashboard: bool

    def start(self, place: Namespaces, index: int, settings: HostSettings) -> subprocess.Popen[str]:
        """Start host ``index``'s; the head is number 0."""
        arguments = [
            f"--node-ip-address={address(index)}",
            f"--num-cpus={settings.cpus or 0}",
            f"--object-store-memory={self.object_store_bytes}",
        ]
        if settings.resources:
            arguments.append(f"--resources={json.dumps(dict(settings.resources))}")
        if index == 0:
            arguments += ["--head", f"--port={PORT}", f"--include-dashboard={str(self.dashboard).lower()}"]
            # For the other hosts, too: there is nobody else in this network.
            arguments.append("--dashboard-host=0.0.0.0")
        else:
            arguments.append(f"--address={address(0)}:{PORT}")
        return start_node(place.popen, arguments, {**self.environment, **settings.environment})


def fleet_nodes(folder: Path, environment: Mapping[str, str], object_store_bytes: int, dashboard: bool) -> FleetNodes:
    """With a token of the fleet's own in ``folder``."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    theirs = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return FleetNodes(
        environment={**theirs, **ours, **environment}, object_store_bytes=object_store_bytes, dashboard=dashboard
    )
