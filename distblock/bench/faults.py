"""A campaign of faults: many short runs, in each of which workers die, against the undisturbed weights.

Every fault strikes at an exact call of an exact worker, drawn from a seed, so a run that ends differently can be run
again. Everything is on scikit-learn's digits.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from distblock import local
from distblock.config import make_config
from distblock.errors import RunFailedError
from distblock.learning.stage import weights_sha256
from distblock.messages import Failure
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_course, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.cluster import joined
from distblock.runtime.crew import State
from distblock.runtime.faults import Fault
from distblock.runtime.placement import bundles

REGIMES: dict[str, dict[str, Any]] = {
    "parallel": {"name": "parallel", "epochs": 3},
    "sequential": {"name": "sequential", "epochs": 1},
    "multi-lap": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": "frozen"},
    "wavefront, cache": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "cache"},
    "wavefront, frozen": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "frozen"},
}
"""The deterministic regimes."""

STAGES = 3
SOONEST, LATEST = 1, 16
"""Calls at which faults strike: every worker has so many in every regime."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Weights after faults against weights without."""

    runs: int = 10
    """runs, the regimes in turn"""
    faults: int = 2
    """faults a run, each at another worker or data worker"""
    seed: int = 0
    """of the faults"""
    output: str | None = None
    """write every run as JSON here"""


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
    options = tyro.cli(Options, args=list(arguments), prog="distblock bench faults")
    names = list(REGIMES)[: options.runs]
    prepared = {name: _prepare(REGIMES[name]) for name in names}
    expected = {name: _undisturbed(each) for name, each in prepared.items()}
    draw = random.Random(options.seed)
    runs = []
    config = prepared[names[0]].config
    # One embedded Ray for all of them.
    with joined(config, bundles(config, num_workers=STAGES)):
        for number in range(options.runs):
            name = names[number % len(names)]
            runs.append({"regime": name, **_disturbed(prepared[name], _faults(options, draw), expected[name])})
            if options.output is not None:
                Path(options.output).write_text(json.dumps({"options": asdict(options), "runs": runs}, indent=2))
    Console(width=120).print(_table(runs))
    if not all(run["is_equal"] for run in runs):
        raise RunFailedError(f"bench faults: {sum(not run['is_equal'] for run in runs)} runs ended with other weights")


def _faults(options: Options, draw: random.Random) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            worker=worker,
            turn=draw.randint(SOONEST, LATEST),
            kind=draw.choice(["kill", "segfault"]),
            moment=draw.choice(["before", "computed", "stored"]),
        )
        for worker in draw.sample(range(STAGES + 1), min(options.faults, STAGES + 1))
    )


def _prepare(regime: dict[str, Any]) -> Prepared:
    data = {"batch_size": 96, "fraction": 0.5}
    # So small a budget that snapshots are taken all along.
    return prepare(make_config({"data": data, "regime": regime, "recovery": {"kept_bytes": 300_000}}))


def _undisturbed(prepared: Prepared) -> list[str]:
    """Hashes by the plain loop, in which nothing can fail."""
    whole = replace(prepared.blueprint, hosts=(range(prepared.blueprint.num_stages),))
    [host] = make_job(replace(prepared, blueprint=whole), run="undisturbed").hosts
    return _hashes(local.execute(host, prepared.data, make_course(prepared), Silent(), initial={}))


def _disturbed(prepared: Prepared, faults: tuple[Fault, ...], expected: list[str]) -> dict[str, Any]:
    job = replace(make_job(prepared, run="faults"), faults=faults)
    watch, begun_s = _Watch(), time.perf_counter()
    state = driver.execute(job, make_course(prepared), watch, note=lambda text: None)  # noqa: ARG005
    return {
        "faults": [asdict(fault) for fault in faults],
        "failures": [asdict(failure) for failure in watch.failures],
        "is_equal": _hashes(state) == expected,
        "wall_s": time.perf_counter() - begun_s,
    }


def _hashes(state: State) -> list[str]:
    return [
        weights_sha256({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
        for _, arrays in sorted(state.items())
    ]


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="runs with faults, against the plain loop without")
    for heading in ("regime", "runs", "faults", "other weights", "held up a fault: median", "max", "computed again"):
        table.add_column(heading, justify="left" if heading == "regime" else "right")
    for name in Counter(run["regime"] for run in runs):
        own = [run for run in runs if run["regime"] == name]
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
    return table
