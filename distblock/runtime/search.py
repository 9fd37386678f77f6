"""A search over settings by Ray Tune, stopped early by ASHA where a trial falls behind.

Source: Li et al. 2020, "A system for massively parallel hyperparameter tuning", arXiv:1810.05934.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from distblock.runtime.cluster import embed, join, sigterm_kept

METRIC = "val_accuracy"
"""What trials report, and what is searched for."""

LONGEST = 100_000
"""Reports after which ASHA would end a trial that is none too bad; trials end by themselves."""

Report = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a setting may lie.

    Attributes:
        kind: ``log`` or ``uniform`` between two bounds, ``choice`` of some values, or ``each`` of them in turn.
        values: the two bounds, or the values.
    """

    kind: Literal["log", "uniform", "choice", "each"]
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial.

    Attributes:
        values: its settings, by dotted key.
        accuracy: the last one it reported; None: it failed before.
        reports: how many evaluations it lived through.
        error: what ended it, if not the search.
    """

    values: Mapping[str, Any]
    accuracy: float | None
    reports: int
    error: str | None


def search(
    run: Callable[[str, Mapping[str, Any], Report], None],
    space: Mapping[str, Range],
    *,
    num_trials: int,
    grace: int,
    folder: Path,
    address: str | None,
    seed: int,
) -> list[Trial]:
    """Run trials, a CPU each.

    Args:
        run: runs one trial, given its name, its settings and a function that takes each validation accuracy.
        space: what is searched.
        num_trials: how many.
        grace: reports before a trial may be stopped.
        folder: where Ray Tune keeps its records.
        address: a cluster's address; None: this machine.
        seed: of the draws.

    Returns:
        The trials, the best first.
    """
    ours = not ray.is_initialized()
    if ours:
        with sigterm_kept():
            _connect(address)
    try:
        scheduler = ASHAScheduler(grace_period=grace, max_t=LONGEST, reduction_factor=3)
        tuner = tune.Tuner(
            _trainable(run, space),
            param_space={key: _domain(each) for key, each in space.items()},
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=num_trials,
                scheduler=scheduler,
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=_in_turn(space, num_trials), random_state=seed % 2**32
                ),
            ),
            run_config=tune.RunConfig(name="ray-tune", storage_path=str(folder.resolve()), verbose=0),
        )
        results = tuner.fit()
        return sorted(
            (_trial(results[index], space) for index in range(len(results))),
            key=lambda trial: -(trial.accuracy or -1.0),
        )
    finally:
        if ours:
            ray.shutdown()


def _in_turn(space: Mapping[str, Range], num_trials: int) -> list[dict[str, int]]:
    """Of each trial, the settings that are not drawn, by number: Ray Tune would take a list of values apart."""
    turns = {key: len(each.values) for key, each in space.items() if each.kind == "each"}
    return [{key: number % count for key, count in turns.items()} for number in range(num_trials) if turns]


def _drawn(values: Mapping[str, Any], space: Mapping[str, Range]) -> dict[str, Any]:
    """A trial's settings as they were asked for."""
    return {key: space[key].values[value] if space[key].kind == "each" else value for key, value in values.items()}


def _trainable(
    run: Callable[[str, Mapping[str, Any], Report], None], space: Mapping[str, Range]
) -> Callable[[dict[str, Any]], None]:
    def trainable(values: dict[str, Any]) -> None:
        run(tune.get_context().get_trial_id(), _drawn(values, space), lambda accuracy: tune.report({METRIC: accuracy}))

    return trainable


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    if address is None:
        embed()
    else:
        join(address)


def _domain(each: Range) -> Any:
    if each.kind == "choice":
        return tune.choice(list(each.values))
    if each.kind == "each":
        return tune.choice(list(range(len(each.values))))
    low, high = each.values
    return tune.loguniform(low, high) if each.kind == "log" else tune.uniform(low, high)


def _trial(result: Any, space: Mapping[str, Range]) -> Trial:
    metrics = result.metrics or {}
    return Trial(
        values=_drawn(result.config or {}, space),
        accuracy=metrics.get(METRIC),
        reports=metrics.get("training_iteration", 0),
        error=None if result.error is None else " ".join(str(result.error).split())[-200:],
    )
