"""A Prometheus of our own, with deploy's configuration, and what it knows."""

from __future__ import annotations

import json
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
