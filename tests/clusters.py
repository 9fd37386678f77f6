"""Ray nodes in processes of their own, ended by their process ids."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts.nodes import start_node, wait_until_ready


@dataclass(frozen=True)
class Cluster:
    """A Ray that runs in processes of its own."""

    address: str
    environment: dict[str, str]
    dashboard: str = ""


TOKEN = "0123456789abcdef0123456789abcdef"


@contextmanager
def started_cluster(
    folder: Path, cpus: Sequence[int], *, dashboard: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Nodes with token authentication, each at a loopback address of its own: the head first, at 127.0.0.1."""
    (folder / "token").write_text(TOKEN)
    address = f"127.0.0.1:{_free_port()}"
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **(environment or {})}
    head = ["--head", f"--port={address.rpartition(':')[2]}", f"--include-dashboard={str(dashboard).lower()}"]
    head += [f"--ray-client-server-port={_free_port()}"]  # else the same one in every Ray
    http = ""
    if dashboard:
        port = _free_port()
        http = f"http://127.0.0.1:{port}"
        # An agent, which starts jobs, otherwise listens on the same port in every Ray.
        head += [f"--dashboard-port={port}", "--dashboard-host=127.0.0.1", "--dashboard-agent-listen-port=0"]
    with ExitStack() as stack:
        for index, count in enumerate(cpus):
            joins = head if index == 0 else [f"--address={address}"]
            place = [f"--num-cpus={count}", f"--node-ip-address=127.0.0.{index + 1}"]
            process = start_node(subprocess.Popen, [*joins, *place], {**os.environ, **own})
            stack.callback(_end, process)
            wait_until_ready(process)
        yield Cluster(address, {**os.environ, **own}, http)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()
