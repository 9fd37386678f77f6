"""What surviving failures costs: checkpoints where nothing fails, and a death in the middle, with one worker restarted
alone or, as other trainers do, with everything going back to the last checkpoint.

The same training each time, in turn, in one run of the benchmark; ratios are taken round by round.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distblock.attempts import Attempts
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.config import make_config
from distblock.errors import RunFailedError
from distblock.messages import Failure
from distblock.preparation import Prepared, make_job, prepare
from distblock.report.monitor import Monitor
from distblock.runs import RunDirectory
from distblock.runtime.cluster import joined
from distblock.runtime.faults import Fault
from distblock.runtime.placement import bundles
from distblock.schedule.stopping import Patience

CASES = ("no checkpoints", "checkpoints", "one worker again", "all from the last checkpoint")


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Checkpoints, and deaths, against neither."""

    data_path: str | None = None
    """folder with CIFAR-10 as Parquet; default: scikit-learn's digits"""
    model: str = "resnet8"
    """network"""
    stages: int = 3
    """stages, a worker each"""
    epochs: int = 10
    """epochs"""
    fraction: float = 1.0
    """part of the training images"""
    batch_size: int = 64
    """samples a step"""
    every_s: float | None = None
    """seconds between checkpoints; default: as often as takes under 3 % of the time"""
    rounds: int = 3
    """rounds"""
    deaths: int = 1
    """workers killed in each run with deaths, evenly over it, a worker further each time"""


@dataclass(frozen=True, kw_only=True)
class _Run:
    case: str
    wall_s: float
    samples_per_s: float
    checkpoints: int
    failures: tuple[Failure, ...]


def main(arguments: Sequence[str]) -> None:
    """``distblock bench recovery``.

    Raises:
        RunFailedError: the cases did not end with the same weights, or, with --check, a ratio fell short.
    """
    options = read_options(Options, "recovery", arguments)
    runs: list[list[_Run]] = []
    config = _prepare(options, CASES[0]).config
    weights: set[bytes] = set()
    with joined(config, bundles(config, num_workers=options.stages)):
        for _ in range(options.rounds):
            runs.append([])
            for case in CASES:
                run, state = _train(_prepare(options, case), case, options)
                runs[-1].append(run)
                weights.add(b"".join(array.tobytes() for stage in sorted(state) for array in state[stage].values()))
    Console(width=120).print(_table(runs))
    if len(weights) != 1:
        raise RunFailedError("bench recovery: the cases ended with different weights")
    conclude("recovery", options, make_outcome(runs))


def make_outcome(rounds: Sequence[Sequence[_Run]]) -> Outcome:
    """Ratios are of samples per second over those without checkpoints and deaths, within a round."""
    rates = {case: [each[index].samples_per_s for each in rounds] for index, case in enumerate(CASES)}
    return Outcome(
        figures=[[asdict(run) for run in each] for each in rounds],
        ratios={
            f"{case} / {CASES[0]}": [own / none for own, none in zip(rates[case], rates[CASES[0]], strict=True)]
            for case in CASES[1:]
        },
        picture=Bars(
            title="checkpoints and deaths",
            unit="samples/s, median",
            bars={"samples/s": {case: statistics.median(values) for case, values in rates.items()}},
        ),
    )


def _prepare(options: Options, case: str) -> Prepared:
    data: dict[str, Any] = {"fraction": options.fraction, "batch_size": options.batch_size}
    if options.data_path is not None:
        data |= {"name": "parquet", "path": options.data_path}
    every_s: Any = None if case == CASES[0] else options.every_s or "auto"
    return prepare(
        make_config(
            {
                "data": data,
                "model": {"name": options.model, "stages": options.stages},
                "regime": {"epochs": options.epochs, "evaluate_every": options.epochs},
                "checkpoint": {"every_s": every_s},
                "recovery": {"scope": "run" if case == CASES[3] else "worker"},
            }
        )
    )


def _train(prepared: Prepared, case: str, options: Options) -> tuple[_Run, Any]:
    job = make_job(prepared, run="recovery")
    if case in CASES[2:]:
        job = replace(job, faults=_faults(prepared, options, goes_back=case == CASES[3]))
    with tempfile.TemporaryDirectory(prefix="distblock-recovery-") as folder:
        directory = RunDirectory.at(Path(folder) / "run")
        directory.create()
        patience = Patience(None)
        with Monitor(
            prepared.config,
            run="recovery",
            blueprint=prepared.blueprint,
            plan=prepared.plan,
            patience=patience,
            console=Console(quiet=True),
        ) as monitor:
            outcome = Attempts(prepared, job, directory, monitor, patience, is_resumed=False).run()
        run = _Run(
            case=case,
            wall_s=monitor.wall_s,
            samples_per_s=monitor.account.samples_trained / monitor.wall_s,
            checkpoints=max((kept.number for kept in outcome.kept), default=0),
            failures=tuple(monitor.account.failures),
        )
    return run, outcome.state


def _faults(prepared: Prepared, options: Options, *, goes_back: bool) -> tuple[Fault, ...]:
    """Deaths at training microbatches evenly over the run; where all goes back, each in an attempt of its own."""
    per_epoch = prepared.plan.steps_per_epoch
    faults = []
    for number in range(options.deaths):
        epoch, index = divmod(round((number + 1) / (options.deaths + 1) * options.epochs * per_epoch), per_epoch)
        faults.append(
            Fault(
                stage=number % options.stages,
                epoch=epoch,
                index=index,
                process=0 if goes_back else number // options.stages,
                attempt=number if goes_back else 0,
            )
        )
    return tuple(faults)


def _table(rounds: Sequence[Sequence[_Run]]) -> Table:
    table = Table(title=f"{len(rounds)} rounds; medians")
    headings = ("", "samples/s", "of no checkpoints", "min", "max", "checkpoints", "deaths", "held up a death", "again")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for index, case in enumerate(CASES):
        own = [each[index] for each in rounds]
        ratios = [each[index].samples_per_s / each[0].samples_per_s for each in rounds]
        failures = [failure for run in own for failure in run.failures]
        table.add_row(
            case,
            f"{statistics.median(run.samples_per_s for run in own):.0f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f}",
            f"{max(ratios):.3f}",
            f"{statistics.median(run.checkpoints for run in own):.0f}",
            str(len(failures)),
            f"{statistics.median(f.held_up_s for f in failures):.2f} s" if failures else "",
            f"{statistics.median(f.replayed for f in failures):.0f}" if failures else "",
        )
    return table
