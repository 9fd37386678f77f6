"""Ray nodes in processes of their own, ended by their process ids."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts.nodes import start_node, wait_until_ready


@dataclass(frozen=True)
class Cluster:
    """A Ray that runs in processes of its own."""

    address: str
    environment: dict[str, str]


@contextmanager
def started_cluster(folder: Path, cpus: Sequence[int]) -> Iterator[Cluster]:
    """Nodes with token authentication, each at a loopback address of its own: the head first, at 127.0.0.1."""
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    with ExitStack() as stack:
        for index, count in enumerate(cpus):
            joins = head if index == 0 else [f"--address={address}"]
            own = [f"--num-cpus={count}", f"--node-ip-address=127.0.0.{index + 1}"]
            process = start_node(subprocess.Popen, [*joins, *own], environment)
            stack.callback(_end, process)
            wait_until_ready(process)
        yield Cluster(address, environment)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()
