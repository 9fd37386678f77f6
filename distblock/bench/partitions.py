"""What a plan gains: samples per second of the partition that is planned, of equal block counts, and of all there are.

Networks whose blocks take unlike times. Every partition runs in the heats; in the finals those that came near the best,
the plan and equal block counts, more often, in an order that changes from round to round. Only finals are compared: of
many partitions that ran once or twice the quickest is a lucky one.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, keep_line, read_options
from distblock.bench.pictures import Bars
from distblock.bench.workers import Settings, measure_workers, prepare_run
from distblock.errors import InputError
from distblock.learning.partition import balance
from distblock.planning.layout import Seat
from distblock.planning.request import Request
from distblock.plans import search

Cuts = tuple[int, ...]

Speeds = Mapping[Cuts, float]
"""Of one round: samples per second by partition."""

NEAR = 0.9
"""Of the quickest partition's samples per second in the heats: what is no slower has its place in the finals."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples per second as planned, with equal block counts, and with every other partition."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    models: tuple[str, ...] = ("torchvision/swin_t", "torchvision/swin_v2_t", "torchvision/swin_s")
    """networks"""
    workers: int = 2
    """stages, a worker each"""
    batch_size: int = 16
    """samples a microbatch"""
    microbatches: int = 24
    """microbatches of a run that count"""
    heats: int = 1
    """rounds of every partition there is"""
    finals: int = 5
    """rounds of the plan, of equal block counts, and of what came near the best; medians are printed"""
    log: str | None = None
    """write every round as a line of JSON here as it ends: nothing is lost if the rest is cut short"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of a network.

    Attributes:
        planned, equal: first blocks of stages, from the second on.
        heats: rounds of all partitions.
        finals: rounds of those that are compared.
    """

    planned: Cuts
    equal: Cuts
    heats: Sequence[Speeds]
    finals: Sequence[Speeds]

    @property
    def best(self) -> Cuts:
        """The quickest in the finals, by its median."""
        return max(self.finals[0], key=self.median)

    def median(self, cuts: Cuts) -> float:
        """Samples per second in the finals."""
        return _median(self.finals, cuts)

    def ratios(self, other: Cuts) -> list[float]:
        """Of the planned partition over another, within a round."""
        return [each[self.planned] / each[other] for each in self.finals]


def main(arguments: Sequence[str]) -> None:
    """``distblock bench partitions --data-path DIR``.

    Raises:
        InputError: an option that cannot be.
        RunFailedError: a run failed, or, with --check, a ratio fell short.
    """
    options = read_options(Options, "partitions", arguments)
    least = min(options.batch_size, options.microbatches, options.heats, options.finals)
    if least < 1 or options.workers < 2 or not options.models:
        raise InputError("bench partitions: expected models, sizes and rounds above 0, and two workers or more")
    found = {model: measure(options, model) for model in options.models}
    Console(width=140).print(_table(options, found))
    conclude("partitions", options, make_outcome(found))


def measure(options: Options, model: str) -> Found:
    """Plan, run all partitions, then those that may be the best."""
    config = prepare_run(_settings(options, model, cuts=None)).config
    plan = search(Request(config=config, seats=(Seat(),) * options.workers))
    blocks = plan.planner.costs.num_blocks
    planned, equal = plan.plan.cuts, balance([1] * blocks, options.workers)
    everything = list(itertools.combinations(range(1, blocks), options.workers - 1))
    # A plan with fewer workers than there may be is a partition, too.
    everything += [] if planned in everything else [planned]
    print(f"{model}: planned {_name(planned)}, equal {_name(equal)}", file=sys.stderr)
    heats = [_round(options, model, everything, f"heat {number}") for number in range(options.heats)]
    compared = finalists(heats, [planned, equal])
    finals = [_round(options, model, compared, f"final {number}") for number in range(options.finals)]
    return Found(planned=planned, equal=equal, heats=heats, finals=finals)


def finalists(heats: Sequence[Speeds], seeded: Sequence[Cuts]) -> list[Cuts]:
    """Those that are seeded, and all that came near the quickest, by medians."""
    medians = {cuts: _median(heats, cuts) for cuts in heats[0]}
    quickest = max(medians.values())
    return [cuts for cuts, speed in medians.items() if cuts in seeded or speed >= NEAR * quickest]


def _round(options: Options, model: str, partitions: Sequence[Cuts], name: str) -> Speeds:
    order = random.Random(name).sample(partitions, len(partitions))
    speeds: dict[Cuts, float] = {}
    for number, cuts in enumerate(order, start=1):
        speeds[cuts] = measure_workers(_settings(options, model, cuts=cuts)).pipeline
        done = f"{number}/{len(order)}"
        print(f"{model}, {name}, {done}: cut at {_name(cuts)} {speeds[cuts]:.1f} samples/s", file=sys.stderr)
    named = {_name(cuts): round(speeds[cuts], 1) for cuts in partitions}
    print(f"{model}, {name}: {named}", file=sys.stderr)
    keep_line(options.log, {"model": model, "round": name, "samples_per_s": named})
    return {cuts: speeds[cuts] for cuts in partitions}


def _median(rounds: Sequence[Speeds], cuts: Cuts) -> float:
    return statistics.median(each[cuts] for each in rounds)


def _settings(options: Options, model: str, *, cuts: Cuts | None) -> Settings:
    workers = options.workers if cuts is None else len(cuts) + 1
    return Settings(
        data_path=options.data_path,
        model=model,
        stages=workers,
        workers=workers,
        cuts=cuts or None,
        batch_size=options.batch_size,
        microbatches=options.microbatches,
        alone=False,
    )


def make_outcome(found: Mapping[str, Found]) -> Outcome:
    """The plan over equal block counts, and over the best of all."""
    ratios = {}
    for model, each in found.items():
        ratios[f"planned / equal block counts, {model}"] = each.ratios(each.equal)
        ratios[f"planned / best of all, {model}"] = each.ratios(each.best)
    bars = {
        "planned": {model: each.median(each.planned) for model, each in found.items()},
        "equal block counts": {model: each.median(each.equal) for model, each in found.items()},
        "best of all": {model: each.median(each.best) for model, each in found.items()},
    }
    figures = {
        model: {
            "planned": each.planned,
            "equal": each.equal,
            "heats": _named(each.heats),
            "finals": _named(each.finals),
        }
        for model, each in found.items()
    }
    return Outcome(
        figures=figures, ratios=ratios, picture=Bars(title="partitions", unit="samples/s, median", bars=bars)
    )


def _table(options: Options, found: Mapping[str, Found]) -> Table:
    title = f"{options.workers} workers, batch {options.batch_size}, {options.finals} rounds of finals, medians"
    table = Table(title=title, caption="cuts: first block of each stage from the second on; samples/s")
    headings = (
        "network",
        "partitions",
        "planned",
        "",
        "equal counts",
        "",
        "best of all",
        "",
        "planned / equal",
        "/ best",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for model, each in found.items():
        cells = [model, str(len(each.heats[0]))]
        for cuts in (each.planned, each.equal, each.best):
            cells += [_name(cuts), f"{each.median(cuts):.0f}"]
        gains = [f"{statistics.median(each.ratios(cuts)):.3f}" for cuts in (each.equal, each.best)]
        table.add_row(*cells, *gains)
    return table


def _named(rounds: Sequence[Speeds]) -> list[dict[str, float]]:
    return [{_name(cuts): speed for cuts, speed in speeds.items()} for speeds in rounds]


def _name(cuts: Cuts) -> str:
    return " ".join(map(str, cuts)) or "none"
