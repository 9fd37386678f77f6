"""Half of the classes first, the others later with few samples: what is kept of the old, what is learned of the new.

A run learns the first half of the classes. Others go on from it, with classifiers that have grown: on a few samples of
each new class alone, or on as many of each old class, too. Block-local training with and without the transport cost,
with its early stages frozen or not, beside fine-tuning end to end; the same data, epochs and optimizer for all.
Accuracy is on the test part, by the stage chosen on validation, among all classes.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, keep_line, read_options
from distblock.bench.pictures import Bars
from distblock.config import DataConfig, make_config
from distblock.data.opening import open_classes, open_data
from distblock.errors import InputError
from distblock.evaluation import in_one_piece
from distblock.inference.early_exit import microbatches
from distblock.inference.exits import load_exits
from distblock.runs import RunDirectory
from distblock.statistics import interval
from distblock.training import Training

METHODS: Mapping[str, dict[str, Any]] = {
    "tau 1": {"objective": {"tau": 1.0}},
    "greedy": {"objective": {"tau": math.inf}},
    "end-to-end": {"regime": {"name": "end-to-end"}},
}


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """What later classes do to earlier ones, with few samples of them."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    model: str = "resnet8"
    """network, a stage a block"""
    fraction: float = 0.2
    """part of the training images of the first classes"""
    epochs: int = 15
    """over those"""
    per_class: tuple[int, ...] = (20, 100)
    """samples of each class later"""
    later_epochs: int = 30
    """over those"""
    freeze_before: int = 2
    """stages before this one are frozen, in some of the later runs"""
    batch_size: int = 50
    """samples a step"""
    seeds: int = 3
    """of everything"""
    log: str | None = None
    """write every run as a line of JSON here as it ends; runs of the same settings that are there are not run again"""

    @property
    def settings(self) -> dict[str, Any]:
        """That a result depends on."""
        settings = asdict(self)
        for name in ("output", "picture", "check", "data_path", "per_class", "seeds", "log"):
            del settings[name]
        return settings


@dataclass(frozen=True, kw_only=True)
class Case:
    """A later run.

    Attributes:
        method: how all is trained.
        per_class: samples of each class.
        has_old: of the old classes, too.
        is_frozen: early stages are.
    """

    method: str
    per_class: int
    has_old: bool
    is_frozen: bool

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.method, f"{self.per_class} a class", "new and old" if self.has_old else "new alone"]
        return ", ".join([*parts, *(["frozen"] if self.is_frozen else [])])


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracy on the test part.

    Attributes:
        case: the run's name.
        seed: its seed.
        before: of the old classes, among themselves, before anything new came.
        old, new: of each half of the classes afterwards, among all of them.
    """

    case: str
    seed: int
    before: float
    old: float
    new: float


def main(arguments: Sequence[str]) -> None:
    """``distblock bench new-classes --data-path DIR``.

    Raises:
        InputError: an option or the data cannot be.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "new-classes", arguments)
    if min(options.seeds, options.epochs, options.later_epochs, *options.per_class) < 1:
        raise InputError("bench new-classes: expected --seeds, --epochs, --later-epochs and --per-class above 0")
    known = read_log(options)
    results = []
    for result in _all(options, known):
        results.append(result)
        if (result.case, result.seed) not in known:
            keep_line(options.log, {**asdict(result), "settings": options.settings})
    Console(width=120).print(make_table(results))
    conclude("new-classes", options, make_outcome(results))


def read_log(options: Options) -> dict[tuple[str, int], Result]:
    """The runs of these settings that the log has, by case and seed.

    Raises:
        InputError: a line is not one of this benchmark's.
    """
    if options.log is None or not Path(options.log).exists():
        return {}
    found = {}
    for number, line in enumerate(Path(options.log).read_text().splitlines(), start=1):
        try:
            content = json.loads(line)
            settings = content.pop("settings")
            result = Result(**content)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"--log: expected lines that bench new-classes wrote in {options.log}, got another one, line {number};"
                " name another file"
            ) from None
        if settings == options.settings:
            found[result.case, result.seed] = result
    return found


def _all(options: Options, known: Mapping[tuple[str, int], Result]) -> Iterator[Result]:
    _, names = open_classes(DataConfig(name="parquet", path=options.data_path), None)
    old, new = names[: len(names) // 2], names[len(names) // 2 :]
    with tempfile.TemporaryDirectory(prefix="distblock-bench-") as folder:
        for seed in range(options.seeds):
            for method in METHODS:
                cases = list(_cases(options, method))
                yield from (known[case.name, seed] for case in cases if (case.name, seed) in known)
                left = [case for case in cases if (case.name, seed) not in known]
                if not left:
                    continue
                first = _settings(options, method, seed, {"classes": old, "fraction": options.fraction}, options.epochs)
                base = _train(first, f"{folder}/{method}-{seed}")
                before = _mean(_right_by_class(base), old)
                for case in left:
                    data = {"per_class": case.per_class, "train_classes": names if case.has_old else new}
                    later = _settings(options, method, seed, data, options.later_epochs)
                    later["model"] |= {"init_from": base.root, "grow_classes": True}
                    later["model"] |= {"freeze_before": options.freeze_before} if case.is_frozen else {}
                    run = _train(later, f"{folder}/later")
                    found = _right_by_class(run)
                    run.filesystem.delete_dir(run.root)
                    old_after, new_after = _mean(found, old), _mean(found, new)
                    yield Result(case=case.name, seed=seed, before=before, old=old_after, new=new_after)


def _cases(options: Options, method: str) -> Iterator[Case]:
    for per_class in options.per_class:
        for has_old in (False, True):
            for is_frozen in (False, True) if method != "end-to-end" else (False,):
                yield Case(method=method, per_class=per_class, has_old=has_old, is_frozen=is_frozen)


def _settings(options: Options, method: str, seed: int, data: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    own = METHODS[method]
    return {
        "seed": seed,
        "executor": "local",
        "data": {"name": "parquet", "path": options.data_path, "batch_size": options.batch_size, **data},
        "model": {"name": options.model},
        "objective": own.get("objective", {}),
        "regime": {**own.get("regime", {}), "epochs": epochs, "evaluate_every": epochs},
        "checkpoint": {"every_s": None},
        "metrics": {"record": False},
    }


def _train(settings: Mapping[str, Any], to: str) -> RunDirectory:
    Training(make_config({**settings, "run_dir": to}), console=Console(quiet=True)).run()
    return RunDirectory.at(to)


def _right_by_class(run: RunDirectory) -> dict[str, float]:
    """Share of each class's test samples that the chosen stage names, among all classes that the run knows."""
    config = in_one_piece(run.read_config(), None)
    exits = load_exits(run, config=config)
    data = open_data(config.data, seed=config.seed, info=exits.info)
    right, count = (np.zeros(exits.info.num_classes) for _ in range(2))
    for images, labels in microbatches(data, "test", 500):
        answers = exits.answer(images, last=exits.best_stage)
        np.add.at(count, labels, 1)
        np.add.at(right, labels, answers.classes == labels)
    return dict(zip(exits.info.class_names, (right / np.maximum(count, 1)).tolist(), strict=True))


def _mean(by_class: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(by_class[name] for name in names) / len(names)


def make_outcome(results: Sequence[Result]) -> Outcome:
    """Ratios are of accuracy over both halves, with the transport cost over without, seed by seed."""
    both = {(result.case, result.seed): (result.old + result.new) / 2 for result in results}
    ratios: dict[str, list[float]] = {}
    for (case, seed), accuracy in both.items():
        greedy = case.replace("tau 1", "greedy")
        if case.startswith("tau 1") and (greedy, seed) in both:
            name = f"accuracy, tau 1 / greedy, {case.removeprefix('tau 1, ')}"
            ratios.setdefault(name, []).append(accuracy / both[greedy, seed])
    bars = {
        series: {case: float(np.mean([getattr(each, series) for each in own])) for case, own in _by_case(results)}
        for series in ("old", "new")
    }
    picture = Bars(title="classes that come later", unit="test accuracy", bars=bars)
    return Outcome(figures=[asdict(result) for result in results], ratios=ratios, picture=picture)


def make_table(results: Sequence[Result]) -> Table:
    """A row a case: mean and 95 % interval of the mean over seeds, in percent."""
    table = Table(title="test accuracy, %: mean and 95 % interval of the mean over seeds")
    for heading in ("later run", "old before", "old after", "new", "both"):
        table.add_column(heading, justify="left" if heading == "later run" else "right")
    for case, own in _by_case(results):
        columns = [[each.before for each in own], [each.old for each in own], [each.new for each in own]]
        columns.append([(each.old + each.new) / 2 for each in own])
        table.add_row(case, *(interval(column) for column in columns))
    return table


def _by_case(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for case in dict.fromkeys(result.case for result in results):
        yield case, [result for result in results if result.case == case]
