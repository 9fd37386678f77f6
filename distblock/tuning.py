"""`distblock tune`: search settings on the validation part, with early stopping of trials that fall behind."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from distblock.config import Config, dump_config, make_config
from distblock.consoles import for_tables
from distblock.errors import InputError, RunFailedError
from distblock.flags import merge, read_settings, take_options, whole_number
from distblock.planning.layout import Plan
from distblock.plans import candidates
from distblock.runtime.search import Range, Report, Trial, search
from distblock.training import Training

HELP = """usage: distblock tune --search KEY=RANGE [--search KEY=RANGE ...] [--trials N] [--grace N] [--folder DIR]
                      [--config FILE.yaml] [--KEY VALUE ...]

  RANGE            log:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,...; for model.cuts also plan:N, the N partitions
                   with the highest planned throughput, one after the other: which of them is accurate, too
                   e.g. objective.tau=log:0.3:30, optimizer.lr=log:0.005:0.1, regime.laps=choice:1,2,5,
                   model.stages=choice:2,3,blocks
  --trials N       settings that are tried (default 8), each on one CPU by the plain loop
  --grace N        evaluations before a trial may be stopped (default 2)
  --folder DIR     where the trials' runs and best.yaml lie (default runs/tune)"""

DEFAULTS = {"--trials": "8", "--grace": "2", "--folder": "runs/tune"}
OPTIONS = ("--search", *DEFAULTS)


def main(arguments: Sequence[str]) -> None:
    """``distblock tune``."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP)
        return
    given, rest = take_options(arguments, OPTIONS)
    values = merge(read_settings(rest), {"executor": "local"})
    options = DEFAULTS | {name: each[-1] for name, each in given.items()}
    folder = Path(options["--folder"])
    ranges, counts = _split(given.get("--search", []))
    config = _check(values, ranges, is_planned=bool(counts))
    num_trials = whole_number(options["--trials"], where="tune --trials")
    if counts and num_trials < counts[-1]:
        raise InputError(
            f"tune --trials: expected {counts[-1]} or more, one for each partition of model.cuts=plan:{counts[-1]}, got"
            f" {num_trials}"
        )
    plans = {} if not counts else candidates(config, counts[-1])
    planned = {"model.cuts": Range(kind="each", values=tuple(list(cuts) for cuts in plans))} if plans else {}
    space = {**ranges, **planned}
    trials = search(
        partial(run_trial, values, str(folder.resolve()), str(Path.cwd())),
        space,
        num_trials=num_trials,
        grace=whole_number(options["--grace"], where="tune --grace"),
        folder=folder,
        address=config.address,
        seed=config.seed,
    )
    for_tables().print(_table(trials, plans))
    best = trials[0]
    if best.accuracy is None:
        raise RunFailedError(f"tune: all trials failed, the first with: {best.error}")
    chosen = make_config(lay(values, best.values)).model_copy(update={"executor": config.executor, "run_dir": None})
    (folder / "best.yaml").write_text(dump_config(chosen))
    print(f"best by validation: {folder / 'best.yaml'}; train it with distblock train --config {folder / 'best.yaml'}")


def run_trial(
    values: dict[str, Any], folder: str, here: str, name: str, chosen: Mapping[str, Any], report: Report
) -> None:
    """One trial, in a process of Ray Tune's.

    Args:
        values: keys and values that all trials share.
        folder: where the run's directory is made.
        here: where the command runs: the user's own functions are found from there.
        name: the trial's.
        chosen: its settings by dotted key.
        report: takes the validation accuracy of the best stage so far evaluated.
    """
    if here not in sys.path:
        sys.path.insert(0, here)
    accuracies: dict[int, float] = {}

    def evaluated(stage: int, accuracy: float) -> None:
        accuracies[stage] = accuracy
        if stage == max(accuracies):
            report(max(accuracies.values()))

    laid = lay(values, chosen)
    with Path(f"{folder}/{name}.log").open("w") as log:
        trial = {**laid, "run_dir": f"{folder}/{name}"}
        Training(make_config(trial), console=Console(file=log), on_evaluation=evaluated).run()


def lay(values: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key over nested ones."""
    for key, value in chosen.items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, nested)
    return values


def _split(searches: Sequence[str]) -> tuple[dict[str, Range], list[int]]:
    """Ranges by key, and how many planned partitions are asked for."""
    ranges, counts = {}, []
    for text in searches:
        key, _, rest = text.partition("=")
        if rest.startswith("plan:"):
            if key != "model.cuts":
                raise InputError(f"tune --search: plan: belongs to model.cuts, got {text!r}")
            counts.append(whole_number(rest.removeprefix("plan:"), where="tune --search model.cuts=plan"))
        else:
            ranges |= dict([_range(text)])
    return ranges, counts


def _check(values: dict[str, Any], space: Mapping[str, Range], *, is_planned: bool) -> Config:
    """Every setting and bound is allowed by itself."""
    if not (space or is_planned):
        raise InputError("tune: expected --search KEY=RANGE at least once; see distblock tune --help")
    if "run_dir" in values:
        raise InputError("tune: expected no run_dir, since each trial has its own; set --folder")
    for key, each in space.items():
        for value in each.values:
            make_config(lay(values, {key: value}))
    return make_config(values)


def _range(text: str) -> tuple[str, Range]:
    key, _, rest = text.partition("=")
    kind, _, bounds = rest.partition(":")
    if kind == "choice" and bounds:
        return key, Range(kind="choice", values=tuple(yaml.safe_load(value) for value in bounds.split(",")))
    try:
        low, high = (float(bound) for bound in bounds.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if kind not in ("log", "uniform") or not low < high or (kind == "log" and low <= 0):
        raise InputError(
            f"tune --search: expected KEY=log:LOW:HIGH, KEY=uniform:LOW:HIGH or KEY=choice:A,B, got {text!r}"
        )
    return key, Range(kind="log" if kind == "log" else "uniform", values=(low, high))


def _table(trials: Sequence[Trial], plans: Mapping[tuple[int, ...], Plan]) -> Table:
    table = Table(title="trials, the best by validation first")
    keys = sorted(trials[0].values)
    for heading in (*keys, "validation accuracy", "evaluations", *(["planned samples/s"] if plans else []), ""):
        table.add_column(heading, justify="right")
    for trial in trials:
        settings = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in map(trial.values.get, keys)]
        accuracy = "-" if trial.accuracy is None else f"{100 * trial.accuracy:.2f} %"
        planned = [f"{plans[tuple(trial.values['model.cuts'])].samples_per_s:.0f}"] if plans else []
        table.add_row(*settings, accuracy, str(trial.reports), *planned, (trial.error or "")[:60])
    return table
