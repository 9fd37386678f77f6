"""``python -m cluster.hosts``: what it prints, its statuses, and how it is interrupted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from further import further

from cluster.hosts import missing
from cluster.hosts.leftovers import FOLDER_PREFIX

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cluster.hosts", *arguments]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), further(signal.SIGTERM, 143)])
def test_an_interrupted_command_line(number: signal.Signals, status: int):
    command = [
        "run",
        "--hosts",
        "1",
        "--",
        "sh",
        "-c",
        "trap 'echo interrupted; exit 0' INT; echo on; while :; do sleep 0.1; done",
    ]
    with subprocess.Popen(command_line(*command), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "on\n"
        children = psutil.Process(owner.pid).children(recursive=True)
        owner.send_signal(number)
        assert owner.stdout.read() == ("interrupted\n" if number == signal.SIGINT else "")
    assert owner.returncode == status
    assert not any(child.is_running() for child in children)
    assert not list(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}{owner.pid}-*"))


def test_the_command_line_says_links_and_bytes_and_hands_the_status_on():
    arguments = [
        "--hosts",
        "2",
        "--rate",
        "100mbit",
        "none",
        "--delay",
        "1ms",
        "--",
        "sh",
        "-c",
        "hostname; echo $RAY_ADDRESS; exit 5",
    ]
    done = subprocess.run(command_line("run", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stdout == "host0\n10.77.0.1:6379\n"
    assert "host0 10.77.0.1: 1 CPUs, 100mbit (tbf, burst 256kb), 1 ms each way" in done.stderr
    assert "host1 10.77.0.2: 1 CPUs, unlimited, 1 ms each way" in done.stderr
    assert "host1: sent " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delay", "25", "--", "true"], "--delay: expected a time such as 25ms or 0.1s, got '25'"),
        (["--hosts", "3", "--cpus", "1", "2", "--", "true"], "--cpus: expected one value, or one for each of 3 hosts"),
        (["--rate", "quick", "--", "true"], "quick"),
        (["--environment", "A", "--", "true"], "--environment: expected NAME=VALUE, got 'A'"),
        ([], "expected the head's command after --"),
    ],
)
def test_what_the_command_line_refuses(arguments: list[str], message: str):
    done = subprocess.run(command_line("run", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_tool_it_says_which(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "tc" else f"/sbin/{tool}")
    assert missing.__wrapped__() == "not installed: tc (Debian: iproute2, util-linux)"
