"""Whether plans hold: samples per second and memory as foretold, against runs that are made.

The cases were written down before the planner's figures were looked at; every second one is held out: nothing in the
planner was changed for its sake. Networks, partitions, numbers of workers, codecs, replicas and, with ``--hosts``,
links differ. A case is profiled once; then trials and runs take turns, and a run is compared with what the trials
before and after it say, so that a machine that is slower at one time than at another is so for both. Medians of the
ratios.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench import linked
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options, tell
from distblock.bench.pictures import Bars
from distblock.bench.workers import Rates, Settings, measure_workers, prepare_run
from distblock.config import Codec
from distblock.errors import InputError
from distblock.planning.layout import Plan, Seat
from distblock.planning.profile import profile
from distblock.planning.request import Request
from distblock.planning.trials import try_out
from distblock.plans import choose
from distblock.runtime.group import Group


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Throughput and memory as planned, over those of runs."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    cases: tuple[str, ...] = ()
    """names of some of the cases; default: all, those over links with --hosts alone"""
    microbatches: int = 30
    """microbatches of a run that count"""
    rounds: int = 3
    """of each case"""
    hosts: bool = False
    """cases over links, too (cluster/hosts; root, from a checkout)"""
    log: str | None = None
    """write every round of a case as a line of JSON here as it ends: nothing is lost if the rest is cut short"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting.

    Attributes:
        model: network.
        stages: balanced by counted cost; with cuts, as many as they make.
        cuts: first blocks of stages.
        batch_size: samples a microbatch.
        codec: of every edge.
        replicas: workers a stage.
        rate: of the link between two hosts; none: all on this machine.
    """

    model: str
    stages: int
    cuts: tuple[int, ...] | None = None
    batch_size: int = 128
    codec: Codec = "fp32"
    replicas: int = 1
    rate: str | None = None

    @property
    def name(self) -> str:
        """In words."""
        cut = f"{self.stages} stages" if self.cuts is None else f"cut at {' '.join(map(str, self.cuts))}"
        parts = [self.model, cut, f"batch {self.batch_size}"]
        parts += [] if self.codec == "fp32" else [self.codec]
        parts += [] if self.replicas == 1 else [f"{self.replicas} replicas"]
        return ", ".join([*parts, *([self.rate] if self.rate else [])])


CASES = (
    Case(model="resnet20", stages=2),
    Case(model="resnet20", stages=1),
    Case(model="resnet20", stages=2, cuts=(6,)),
    Case(model="resnet20", stages=2, cuts=(2,)),
    Case(model="resnet20", stages=3),
    Case(model="resnet20", stages=4, batch_size=64),
    Case(model="resnet8", stages=2),
    Case(model="resnet8", stages=3, batch_size=256),
    Case(model="resnet32", stages=2, batch_size=64),
    Case(model="resnet32", stages=2, codec="int8"),
    Case(model="torchvision/resnet18", stages=2, batch_size=64),
    Case(model="torchvision/vgg11", stages=2, batch_size=64),
    Case(model="resnet20", stages=1, replicas=2),
    Case(model="resnet20", stages=2, codec="diff4"),
    Case(model="resnet20", stages=2, rate="20mbit"),
    Case(model="resnet20", stages=2, rate="20mbit", codec="bf16"),
    Case(model="resnet20", stages=2, rate="50mbit", codec="int8"),
    Case(model="resnet8", stages=2, rate="100mbit"),
)
"""In pairs: the first of each was looked at while the planner was made, the second is held out."""


def main(arguments: Sequence[str]) -> None:
    """``distblock bench plan --data-path DIR``.

    Raises:
        InputError: an option that cannot be, or hosts cannot be made here.
        RunFailedError: a run failed, or, with --check, a ratio fell short.
    """
    options = read_options(Options, "plan", arguments)
    known = {case.name: case for case in CASES}
    if unknown := [name for name in options.cases if name not in known]:
        raise InputError(f"--cases: expected some of {'; '.join(known)}; got {unknown[0]}")
    cases = [known[name] for name in options.cases] or [case for case in CASES if options.hosts or case.rate is None]
    if any(case.rate for case in cases):
        linked.check(2, "20mbit")
    found = {case.name: _rounds(options, case) for case in cases}
    Console(width=140).print(_table(found))
    conclude("plan", options, make_outcome(found))


Figures = Mapping[str, float]


def _rounds(options: Options, case: Case) -> list[Figures]:
    """As planned, and as it is, in turn."""
    settings = Settings(
        data_path=options.data_path,
        model=case.model,
        stages=case.stages,
        workers=case.stages,
        cuts=case.cuts,
        batch_size=case.batch_size,
        microbatches=options.microbatches,
        codec=case.codec,
        alone=False,
        replicas=case.replicas,
    )
    foretell = foretelling(settings, case)
    plans = [foretell()]
    rounds = []
    for _ in range(options.rounds):
        rates, line = _run(settings, case)
        plans.append(foretell())
        around = plans[-2:]
        figures = {
            "planned_samples_per_s": around[0].num_samples / statistics.mean(plan.pace_s for plan in around),
            "samples_per_s": rates.pipeline,
            "planned_memory_bytes": statistics.mean(
                max(piece.memory_bytes for piece in plan.pieces) for plan in around
            ),
            "memory_bytes": max(rates.peak_memory_bytes),
            "line_bytes_per_s": line,
        }
        tell(options.log, "case", case.name, figures)
        rounds.append(figures)
    return rounds


def _run(settings: Settings, case: Case) -> tuple[Rates, float]:
    """What it is, and what its line carried."""
    if case.rate is None:
        return measure_workers(settings), math.nan
    with linked.on_hosts(linked.Link(rate=case.rate, delay_ms=0.0), settings) as (_, rates, carried):
        return rates, carried * rates.wire_bytes_per_sample


def foretelling(settings: Settings, case: Case) -> Callable[[], Plan]:
    """What the planner says of a layout that is given, each time by a trial of its own."""
    prepared = prepare_run(replace(settings, address=None))
    nodes = ["a", "b"] if case.rate else ["here"] * case.stages
    bytes_per_s = linked.bytes_per_s(case.rate) if case.rate else math.inf
    seats = tuple(Seat(node=node) for node in nodes)
    # Hosts that are namespaces share this machine's cores.
    cores = max(1, len(os.sched_getaffinity(0)) // len(nodes)) if case.rate else None
    request = Request(
        config=prepared.config, seats=seats, cores=cores, link_bytes_per_s=bytes_per_s, codecs=(case.codec,)
    )
    codecs: tuple[Codec, ...] = tuple(dict.fromkeys(("fp32", case.codec)))
    together = min(2, case.stages * case.replicas)
    measured = profile(prepared.config, prepared.problem, codecs=codecs, processes=together)
    planner = choose(request, measured, prepared.data).planner
    plan = planner.of_cuts(prepared.blueprint.partition.cuts, seats)
    return lambda: try_out(plan, planner.costs, prepared.config, prepared.problem, peers=Group).plan


def make_outcome(found: Mapping[str, Sequence[Figures]]) -> Outcome:
    """Planned over measured, by case."""
    ratios: dict[str, list[float]] = {}
    for name, rounds in found.items():
        ratios[f"samples/s, {name}"] = [each["planned_samples_per_s"] / each["samples_per_s"] for each in rounds]
        ratios[f"memory, {name}"] = [each["planned_memory_bytes"] / each["memory_bytes"] for each in rounds]
    bars = {
        what: {name: statistics.median(ratios[f"{what}, {name}"]) for name in found} for what in ("samples/s", "memory")
    }
    picture = Bars(title="plans against runs", unit="planned over measured", bars=bars)
    return Outcome(figures={name: list(rounds) for name, rounds in found.items()}, ratios=ratios, picture=picture)


def _table(found: Mapping[str, Sequence[Figures]]) -> Table:
    table = Table(title="plans against runs, medians")
    for heading in ("case", "planned samples/s", "measured", "ratio", "planned memory", "measured", "ratio", ""):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    held_out = {case.name: place % 2 == 1 for place, case in enumerate(CASES)}
    for name, rounds in found.items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        table.add_row(
            name,
            f"{middle['planned_samples_per_s']:.0f}",
            f"{middle['samples_per_s']:.0f}",
            _ratio(rounds, "planned_samples_per_s", "samples_per_s"),
            f"{middle['planned_memory_bytes'] / 1e6:.0f} MB",
            f"{middle['memory_bytes'] / 1e6:.0f} MB",
            _ratio(rounds, "planned_memory_bytes", "memory_bytes"),
            "held out" if held_out[name] else "",
        )
    return table


def _ratio(rounds: Sequence[Mapping[str, Any]], planned: str, measured: str) -> str:
    return f"{statistics.median(each[planned] / each[measured] for each in rounds):.3f}"
