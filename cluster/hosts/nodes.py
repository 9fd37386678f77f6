"""Ray nodes as child processes, ready when ``ray start`` says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

RAY = str(Path(sys.executable).parent / "ray")

Popen = Callable[..., subprocess.Popen[str]]


def start_node(popen: Popen, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``ray start --block``; it has begun, but is not ready, on return.

    Args:
        popen: ``subprocess.Popen``, or a host's.
        arguments: what makes it a head or a worker, its address, its resources.
        environment: all of its environment.
    """
    command = [RAY, "start", *arguments, "--disable-usage-stats", "--block"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return popen(command, env=environment, text=True, **streams)


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
