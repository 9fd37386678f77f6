"""A campaign of faults: many short runs, in each of which workers die again and again, against the undisturbed weights.

Every fault strikes at an exact call of an exact process, drawn from a seed, so a run that ends differently can be run
again. Some of the runs are processes of their own that are killed as a whole, at moments from the seed, and resumed.
Everything is on scikit-learn's digits.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import psutil
from rich.console import Console
from rich.table import Table

from distblock import local
from distblock.bench.outcome import Outcome, Outputs, conclude, keep_line, read_options
from distblock.bench.pictures import Bars
from distblock.bench.workers import whole_spec
from distblock.config import Codec, make_config
from distblock.errors import RunFailedError
from distblock.learning.stage import arrays_sha256
from distblock.messages import Failure
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_course, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.cluster import joined
from distblock.runtime.crew import State
from distblock.runtime.faults import Fault, FaultKind, Moment
from distblock.runtime.placement import bundles
from distblock.schedule.failure import Failures

REGIMES: dict[str, dict[str, Any]] = {
    "parallel": {"name": "parallel", "epochs": 3},
    "sequential": {"name": "sequential", "epochs": 1},
    "multi-lap": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": "frozen"},
    "wavefront, cache": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "cache"},
    "wavefront, frozen": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "frozen"},
}
"""The deterministic regimes."""

STAGES = 3
SOONEST, LATEST, APART = 1, 6, 3
"""Calls at which a worker's first fault strikes, and how far the next one is from it at most: every worker has more
calls than these come to, in every regime."""

MOST_OF_ONE = 3
"""Faults of one worker in one run."""

DEADLY: tuple[FaultKind, ...] = ("kill", "segfault", "device")
SILENT: tuple[FaultKind, ...] = ("freeze", "hang")


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Weights after faults against weights without."""

    runs: int = 10
    """runs, the regimes in turn"""
    faults: int = 6
    """faults a run, over workers and the data worker"""
    silent: float = 0.02
    """share of faults that freeze or hang a worker instead of ending it; each takes the deadline for progress"""
    driver_kills: int = 0
    """further runs, in processes of their own that are killed and resumed"""
    codecs: tuple[Codec, ...] = ()
    """instead of the regimes in turn: the parallel one with these codecs in turn"""
    seed: int = 0
    """of the faults"""
    log: str | None = None
    """write every run as a line of JSON here as it ends: nothing is lost if the rest is cut short"""


class _Watch(Silent):
    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def record_failure(self, failure: Failure) -> None:
        self.failures.append(failure)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench faults``.

    Raises:
        RunFailedError: a run ended with other weights than the undisturbed one.
    """
    options = read_options(Options, "faults", arguments)
    cases = _cases(options)
    prepared = {name: prepare(make_config(values)) for name, values in cases.items()}
    expected = {name: _undisturbed(each) for name, each in prepared.items()}
    names, draw, runs = list(cases), random.Random(options.seed), []
    config = prepared[names[0]].config
    # One embedded Ray for all of them.
    with joined(config, bundles(config, num_workers=STAGES)):
        for number in range(options.runs):
            name = names[number % len(names)]
            runs.append(_log(options, name, _disturbed(prepared[name], _faults(options, draw), expected[name])))
    for number in range(options.driver_kills):
        name = names[number % len(names)]
        runs.append(_log(options, f"{name}; driver", _killed(cases[name], draw, expected[name])))
    Console(width=120).print(_table(runs))
    conclude("faults", options, make_outcome(runs))
    if not all(run["is_equal"] for run in runs):
        raise RunFailedError(f"bench faults: {sum(not run['is_equal'] for run in runs)} runs ended with other weights")


def make_outcome(runs: Sequence[dict[str, Any]]) -> Outcome:
    """The ratio is of runs that ended with the weights of the undisturbed one."""
    failures = [failure for run in runs for failure in run["failures"]]
    held_up: dict[str, list[float]] = {}
    for failure in failures:
        held_up.setdefault(failure["kind"], []).append(failure["held_up_s"])
    bars = {kind.replace("_", " "): statistics.median(values) for kind, values in sorted(held_up.items())}
    return Outcome(
        figures={"runs": runs, "num_faults": len(failures)},
        ratios={"runs with the same weights": [float(run["is_equal"]) for run in runs]},
        picture=Bars(title="held up by a failure", unit="seconds, median", bars={"held up": bars}),
    )


def _log(options: Options, name: str, run: dict[str, Any]) -> dict[str, Any]:
    run = {"regime": name, **run}
    keep_line(options.log, run)
    return run


def _faults(options: Options, draw: random.Random) -> tuple[Fault, ...]:
    """Each worker's faults, the n-th of them in its n-th process, at later and later calls."""
    faults: list[Fault] = []
    for worker, count in Counter(draw.choices(range(STAGES + 1), k=options.faults)).items():
        turn = draw.randint(SOONEST, LATEST)
        for process in range(min(count, MOST_OF_ONE)):
            kinds = SILENT if draw.random() < options.silent else DEADLY
            if worker == STAGES:  # a data worker has no device
                kinds = ("kill", "segfault")
            moment: Moment = draw.choice(get_args(Moment))
            faults.append(Fault(worker=worker, turn=turn, process=process, kind=draw.choice(kinds), moment=moment))
            turn += draw.randint(1, APART)
    return tuple(faults)


def _cases(options: Options) -> dict[str, dict[str, Any]]:
    """The settings of each case, by name."""
    if not options.codecs:
        return {name: _settings(regime) for name, regime in REGIMES.items()}
    # So small a budget that some samples are remembered and others are not.
    return {
        f"parallel, {codec}": _settings(REGIMES["parallel"], codec=codec, codec_cache_bytes=2_000_000)
        for codec in options.codecs
    }


def _settings(regime: dict[str, Any], **channel: Any) -> dict[str, Any]:
    # So small a budget that snapshots are taken all along.
    recovery = {"kept_bytes": 300_000, "deadline_s": 3.0}
    # A microbatch a call: so short a run has few of them.
    channel = {"microbatches_per_call": 1, **channel}
    return {"data": {"batch_size": 96, "fraction": 0.5}, "regime": regime, "recovery": recovery, "channel": channel}


def _undisturbed(prepared: Prepared) -> list[str]:
    """Hashes by the plain loop, in which nothing can fail."""
    return _hashes(local.execute(whole_spec(prepared), prepared.data, make_course(prepared), Silent(), initial={}))


def _disturbed(prepared: Prepared, faults: tuple[Fault, ...], expected: list[str]) -> dict[str, Any]:
    job = replace(make_job(prepared, run="faults"), faults=faults)
    watch, begun_s = _Watch(), time.perf_counter()
    # Faults come so fast that several may strike before a result is told: here that is no reason to give up.
    failures = Failures(-1, at_one_place=len(faults) + 1)
    state = driver.execute(job, make_course(prepared), watch, note=lambda text: None, failures=failures)  # noqa: ARG005
    return {
        "faults": [asdict(fault) for fault in faults],
        "failures": [asdict(failure) for failure in watch.failures],
        "is_equal": _hashes(state) == expected,
        "wall_s": time.perf_counter() - begun_s,
    }


def _killed(settings: dict[str, Any], draw: random.Random, expected: list[str]) -> dict[str, Any]:
    """A process that is killed after some checkpoints, and resumed until it ends."""
    begun_s, kills = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="distblock-faults-") as folder:
        config, run = Path(folder) / "run.yaml", Path(folder) / "run"
        config.write_text(json.dumps({**settings, "checkpoint": {"every_microbatches": 3}}))
        command = [*(sys.executable, "-m", "distblock", "train", "--config", str(config)), "--run-dir", str(run)]
        for after in (draw.randint(1, 3), draw.randint(1, 3), None):
            killed_at = _run_and_kill([*command, "--resume"], run, after)
            if killed_at is None:
                break
            kills.append(killed_at)
        summary = json.loads((run / "summary.json").read_text())
    return {
        "faults": kills,
        "failures": summary["failures"],
        "is_equal": [stage["weights_sha256"] for stage in summary["stages"]] == expected,
        "wall_s": time.perf_counter() - begun_s,
    }


def _run_and_kill(command: list[str], run: Path, after: int | None) -> dict[str, Any] | None:
    """Kill a process, and all that it started, once it has so many checkpoints more; where. None: it has ended."""
    there = _newest(run)
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stderr=errors, stdout=errors) as process:
        while process.poll() is None:
            if after is not None and _newest(run) >= there + after:
                started = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGKILL)
                for child in started:
                    child.kill() if child.is_running() else None
                return {"kind": "driver killed", "checkpoint": _newest(run)}
            time.sleep(0.01)
        if process.returncode != 0:
            errors.seek(0)
            raise RunFailedError(f"bench faults: a resumed run failed: {errors.read()[-500:]}")
    return None


def _newest(run: Path) -> int:
    names = [path.parent.name for path in (run / "checkpoints").glob("*/manifest.json")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _hashes(state: State) -> list[str]:
    return [arrays_sha256(arrays) for _, arrays in sorted(state.items())]


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="runs with faults, against the plain loop without")
    for heading in ("regime", "runs", "faults", "other weights", "held up a fault: median", "max", "computed again"):
        table.add_column(heading, justify="left" if heading == "regime" else "right")
    for name in [*Counter(run["regime"] for run in runs), "all"]:
        own = [run for run in runs if name in (run["regime"], "all")]
        failures = [failure for run in own for failure in run["failures"]]
        held_up = [failure["held_up_s"] for failure in failures] or [0.0]
        table.add_row(
            name,
            str(len(own)),
            str(len(failures)),
            str(sum(not run["is_equal"] for run in own)),
            f"{statistics.median(held_up):.1f} s",
            f"{max(held_up):.1f} s",
            f"{statistics.mean([failure['replayed'] for failure in failures] or [0]):.1f}",
        )
    kinds = Counter(failure["kind"] for run in runs for failure in run["failures"])
    table.caption = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    return table
