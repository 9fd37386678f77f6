"""A Prometheus of our own, with deploy's configuration, and what it knows."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from provisioned import PROMETHEUS

from cluster.hosts.nodes import start_node, wait_until_ready

RAY_FILE = "/tmp/ray/prom_metrics_service_discovery.json"


@dataclass(frozen=True)
class Server:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An expression's series now."""
        return self.ask("query", query=expression)["result"]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def prometheus(folder: Path, *, exporter: int, ray_file: Path) -> Iterator[Server]:
    """Deploy's configuration, but scraping every second, an exporter at this port, and Ray's list of nodes there."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    shutil.copytree(PROMETHEUS, folder / "etc")
    config = (PROMETHEUS / "prometheus.yml").read_text()
    assert RAY_FILE in config
    config = config.replace(RAY_FILE, str(ray_file)).replace("_interval: 5s", "_interval: 1s")
    (folder / "etc" / "prometheus.yml").write_text(config)
    targets = (PROMETHEUS / "targets.yml").read_text()
    assert "127.0.0.1:9400" in targets
    (folder / "etc" / "targets.yml").write_text(targets.replace(":9400", f":{exporter}"))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/etc/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield Server(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


@contextmanager
def ray_with_metrics(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray of one node that exports its metrics, with a token and its files in a folder: address and environment.

    Its sockets lie below the folder, and a socket's path is at most 107 characters long.
    """
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port = free_port()
    options = [f"--temp-dir={folder}", "--node-ip-address=127.0.0.2", f"--port={port}", "--num-cpus=8"]
    # An agent otherwise listens on the same port in every Ray.
    options += [f"--dashboard-port={free_port()}", "--dashboard-agent-listen-port=0"]
    node = start_node(subprocess.Popen, ["--head", *options, f"--metrics-export-port={free_port()}"], environment)
    try:
        wait_until_ready(node)
        yield f"127.0.0.2:{port}", environment
    finally:
        node.terminate()
        node.communicate()


def until(what: Callable[[], Any], *, deadline_s: float) -> Any:
    """The first answer that holds something, asked for again and again; the last one where time runs out."""
    end_s = time.monotonic() + deadline_s
    while True:
        try:
            answer = what()
        except OSError:
            answer = None
        if answer or time.monotonic() > end_s:
            return answer
        time.sleep(0.5)
