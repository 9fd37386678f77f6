"""Ray's own microbenchmark, those of its tests that matter for a hop: it says what this machine makes of Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from distblock.errors import RunFailedError

TESTS = ("1:1 actor calls", "single client put gigabytes")
"""Beginnings of their names. Each test takes about twenty seconds."""

LIMIT_S = 300.0

_LINE = re.compile(r"^(.+) per second ([\d.]+) \+- ([\d.]+)$", re.MULTILINE)


def per_second() -> dict[str, float]:
    """Calls, or gigabytes, a second by test; in a Ray of its own.

    Raises:
        RunFailedError: it failed; the message has its last words.
    """
    return {name: rate for tests in TESTS for name, rate in _run(tests).items()}


def _run(tests: str) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", "from ray._private.ray_perf import main; main()"]
    try:
        done = subprocess.run(
            command,
            env={**environment, "TESTS_TO_RUN": tests},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"bench hop: Ray's microbenchmark did not end within {LIMIT_S:g} s") from None
    if done.returncode:
        raise RunFailedError(f"bench hop: Ray's microbenchmark failed: {done.stderr[-500:]}")
    return {match[1]: float(match[2]) for match in _LINE.finditer(done.stdout)}
