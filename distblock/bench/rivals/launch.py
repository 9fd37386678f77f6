"""Start a rival's processes, wait for them, and read what they have left, whatever became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distblock.bench.rivals.trials import Outcome, Task, Trial, write_task
from distblock.learning.allocator import jemalloc_here, keeping_memory

LIMIT_S = 600.0
"""Seconds that processes have for all their trials."""

GRACE_S = 5.0
"""Seconds that the others have to end by themselves once one has failed."""

Start = Callable[..., "subprocess.Popen[str]"]
"""A function of a command, its ``rank``, its further ``environment`` and ``stderr``; it starts the command."""


def start_here(command: Sequence[str], *, rank: int, environment: Mapping[str, str], stderr: Any) -> Any:  # noqa: ARG001
    """On this machine."""
    own = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, **environment}
    return subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stderr=stderr, text=True)


def run_trials(task: Task, trials: Sequence[Trial], *, start: Start = start_here) -> list[Outcome]:
    """Trials of equally many processes, one after the other in the same fresh ones.

    Args:
        task: what they do.
        trials: them; after one that fails, the others are not begun.
        start: starts a process, somewhere that sees the folder of ``task.batches``.
    """
    with tempfile.TemporaryDirectory(dir=task.batches.parent, prefix="trials-") as name:
        folder = Path(name)
        write_task(folder, task, trials)
        ranks = range(trials[0].processes)
        # One thread a process unless it says otherwise, and memory kept as distblock's workers keep it.
        environment = {"OMP_NUM_THREADS": str(trials[0].threads), **keeping_memory(jemalloc_here())}
        processes = []
        try:
            for rank in ranks:
                command = [sys.executable, "-m", "distblock.bench.rivals.rank", str(folder), str(rank)]
                with _errors(folder, rank).open("w") as stderr:
                    processes.append(start(command, rank=rank, environment=environment, stderr=stderr))
            _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        left = [_read(folder / f"rank{rank}.jsonl") for rank in ranks]
        words = " ".join(_errors(folder, rank).read_text() for rank in ranks).split("\n")
        last = next((line for line in reversed(words) if line.strip()), f"no end within {LIMIT_S:g} s")
    return [_outcome(task, [each[n] if n < len(each) else {} for each in left], last) for n in range(len(trials))]


def _errors(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.stderr"


def _wait(processes: Sequence[subprocess.Popen[str]]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while any(each.poll() is None for each in processes) and time.monotonic() < end_s:
        if any(each.poll() for each in processes):
            end_s = min(end_s, time.monotonic() + GRACE_S)
        time.sleep(0.2)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _outcome(task: Task, parts: Sequence[dict[str, Any]], last_words: str) -> Outcome:
    """Of what each process has to say of one trial."""
    errors = [part["error"] for part in parts if "error" in part]
    if errors:
        # Where one failed by itself, the other lost its peer: a lost connection is the less telling of the two.
        return Outcome(error=min(errors, key=lambda error: "onnection" in error or "peer" in error))
    if not all(parts):
        return Outcome(error=last_words)
    losses = [part["losses"] for part in parts if part["losses"]]
    means = tuple(sum(step) / len(step) for step in zip(*losses, strict=True))
    seconds = max(part["seconds"] for part in parts)
    return Outcome(losses=means, samples_per_s=task.config.data.batch_size * task.steps / seconds)
