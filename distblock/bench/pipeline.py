"""The pipeline against its bound, against one worker and the plain loop, and against what else would train the network.

Everything is measured in turn, round by round, so that all see the same machine; ratios are taken within a round.
distblock trains by local losses and the rivals end to end: the same blocks, batches, optimizer, cores and threads, and
another algorithm. That is the comparison: what a user's samples per second are.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import tyro
from rich.console import Console
from rich.markup import escape

from distblock.bench import linked
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options, tell
from distblock.bench.pictures import Bars
from distblock.bench.rivals.lineup import Choice, Rivals, line_up
from distblock.bench.rivals.trials import STAGES_PER_PROCESS, Kind, Wire
from distblock.bench.standings import Round, best, make_matrix, make_table, our_name, ratios
from distblock.bench.workers import Rates, Settings, measure_apart, measure_workers
from distblock.config import Codec
from distblock.errors import InputError

ON_HOSTS: tuple[Kind, ...] = ("DDP", "GPipe", "1F1B")
"""Rivals over a link, unless told otherwise: the other schedules cross it two or three times as often."""

ON_GPUS: tuple[Kind, ...] = ("end-to-end",)
"""Rivals on GPUs: those of several processes would need a GPU for each."""

HERE = "this machine"
"""Where it is measured without --hosts."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples per second of the pipeline, its bound and its rivals."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    model: str = "resnet20"
    """network"""
    workers: tuple[int, ...] = (1, 2)
    """numbers of workers; the largest is that of stages, too, and of rivals' processes"""
    batch_size: int = 128
    """samples a microbatch, and a step"""
    microbatches: int = 40
    """microbatches a round that count"""
    rounds: int = 5
    """rounds; medians are printed"""
    augment: bool = False
    """crop and flip"""
    first_epoch: bool = False
    """count microbatches of a first epoch, whose images are still to be decoded; default: of later ones"""
    codec: Codec = "fp32"
    """of what crosses from worker to worker"""
    gpus_per_worker: float = 0.0
    """above 0: on GPUs, a worker on such a share of one; beside plain training on one GPU"""
    rivals: tuple[Kind, ...] | None = None
    """which; default: all, with --hosts DDP, GPipe and 1F1B"""
    no_rivals: bool = False
    """none at all"""
    rival_microbatches: tuple[int, ...] = (4, 8, 16)
    """pieces of the batch that schedules are tried with; each is shown at its best"""
    rival_steps: int = 20
    """rivals' steps a round that count"""
    rival_precision: Wire | None = None
    """of what crosses between stages of rivals; default: as the codec, bf16 where they have no such one"""
    hosts: bool = False
    """each worker, and each process of a rival, on a host of its own (cluster/hosts; root, from a checkout)"""
    rate: str = "100mbit"
    """with --hosts: of every host's link, as tc writes it; none: as fast as memory is copied"""
    delay_ms: tuple[float, ...] = (0.0,)
    """with --hosts: milliseconds from host to host, each way; several are measured in turn"""
    log: str | None = None
    """write every round as a line of JSON here as it ends: nothing is lost if the rest is cut short"""

    @property
    def processes(self) -> int:
        """Of a pipeline."""
        return max(self.workers)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of rivals."""
        if self.no_rivals:
            return ()
        if self.rivals is not None:
            return self.rivals
        if self.gpus_per_worker:
            return ON_GPUS
        return ON_HOSTS if self.hosts else get_args(Kind)

    @property
    def wire(self) -> Wire:
        """Of rivals."""
        return self.rival_precision or ("fp32" if self.codec == "fp32" else "bf16")

    @property
    def ours(self) -> str:
        """What everything is compared with."""
        return our_name(self.processes)


def main(arguments: Sequence[str]) -> None:
    """``distblock bench pipeline --data-path DIR``.

    Raises:
        InputError: an option that cannot be, or hosts cannot be made here.
        RunFailedError: a run of distblock failed, or, with --check, a ratio fell short.
    """
    options = read_options(Options, "pipeline", arguments)
    _check(options)
    console = Console(width=140)
    with tempfile.TemporaryDirectory(prefix="distblock-bench-") as name:
        rivals = line_up(_settings(options), _choice(options), folder=Path(name))
        if options.hosts:
            links = [linked.Link(rate=options.rate, delay_ms=delay_ms) for delay_ms in options.delay_ms]
            found = linked.measure(
                links, _settings(options), rounds=options.rounds, folder=Path(name), rivals=rivals.measure
            )
        else:
            found = ((HERE, _round(options, rivals)) for _ in range(options.rounds))
        by_link: dict[str, list[Round]] = {}
        for link, figures in found:
            by_link.setdefault(link, []).append(figures)
            tell(options.log, "link", link, figures)
    for link, rounds in by_link.items():
        console.print(make_table(_title(options, link), rounds, _shown(rivals, rounds), ours=options.ours))
    if not options.hosts:
        rows = [our_name(number) for number in options.workers]
        console.print(make_matrix("by number of workers, medians", by_link[HERE], rows, _baselines(rivals)))
    for rival, error in rivals.errors.items():
        console.print(escape(f"{rival}: {error}"))
    conclude("pipeline", options, make_outcome(options, rivals, by_link))


def _check(options: Options) -> None:
    numbers = (*options.workers, *options.rival_microbatches, options.microbatches, options.rounds, options.rival_steps)
    if not options.workers or min(numbers) < 1:
        raise InputError("bench pipeline: expected workers, microbatches, rounds and steps above 0")
    if options.gpus_per_worker and (several := sorted(set(options.kinds) - set(ON_GPUS))):
        raise InputError(
            f"--rivals: expected {', '.join(ON_GPUS)} with --gpus-per-worker, got {', '.join(several)}: those need a"
            " GPU for each process, which no machine had that this was run on; leave them out"
        )
    if options.gpus_per_worker and options.hosts:
        raise InputError("--gpus-per-worker: expected no --hosts beside it: hosts of one machine share its GPUs")
    pieces = {*options.rival_microbatches} if set(options.kinds) & set(STAGES_PER_PROCESS) else set()
    pieces |= {options.processes} if "DDP" in options.kinds else set()
    if uneven := sorted(number for number in pieces if options.batch_size % number):
        raise InputError(
            f"--batch-size: expected a multiple of what it is cut into, {', '.join(map(str, uneven))}, got"
            f" {options.batch_size}; change it, or --rival-microbatches"
        )
    if options.hosts:
        linked.check(options.processes, options.rate)


def _settings(options: Options) -> Settings:
    return Settings(
        data_path=options.data_path,
        model=options.model,
        stages=options.processes,
        workers=options.processes,
        batch_size=options.batch_size,
        microbatches=options.microbatches,
        codec=options.codec,
        augment=options.augment,
        first_epoch=options.first_epoch,
        # Who shares a GPU takes it from others: that is measured together.
        alone=not options.gpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
    )


def _choice(options: Options) -> Choice:
    return Choice(
        kinds=options.kinds,
        processes=options.processes,
        microbatches=options.rival_microbatches,
        wire=options.wire,
        steps=options.rival_steps,
    )


def _round(options: Options, rivals: Rivals) -> Round:
    settings = _settings(options)
    found = {"plain loop": measure_apart("plain-loop", settings).pipeline}
    for number in options.workers:
        found |= _named(number, measure_workers(replace(settings, workers=number)))
    return found | rivals.measure()


def _named(number: int, rates: Rates) -> dict[str, float]:
    found = {our_name(number): rates.pipeline, f"bound of {number} in that run": rates.bound}
    return found if rates.bound_alone is None else found | {f"bound of {number}, worker alone": rates.bound_alone}


def _title(options: Options, link: str) -> str:
    return (
        f"{options.model} in {options.processes} stages, batch {options.batch_size}, {options.rounds} rounds,"
        f" {'the first epoch' if options.first_epoch else 'later epochs'}, distblock sends {options.codec}, rivals"
        f" {options.wire}; {link}"
    )


def _shown(rivals: Rivals, rounds: Sequence[Round]) -> list[str]:
    """Everything but rivals' numbers of microbatches that are not their best."""
    by_kind: dict[str, list[str]] = {}
    for trial in rivals.trials:
        by_kind.setdefault(trial.kind if trial.kind in STAGES_PER_PROCESS else trial.name, []).append(trial.name)
    tried = {name for names in by_kind.values() for name in names}
    own = dict.fromkeys(name for each in rounds for name in each if name not in tried)
    return [*own, *(name for names in by_kind.values() if (name := best(rounds, names)) is not None)]


def named_ratios(options: Options, rivals: Rivals, rounds: Sequence[Round]) -> dict[str, list[float]]:
    """What the benchmark is for, by name: a ratio a round."""
    found = {f"{options.ours} / {name}": ratios(rounds, options.ours, name) for name in _shown(rivals, rounds)}
    for number in options.workers:
        for baseline in _baselines(rivals):
            found[f"{our_name(number)} / {baseline}"] = ratios(rounds, our_name(number), baseline)
        found[f"{our_name(number)} / its bound"] = ratios(rounds, our_name(number), f"bound of {number} in that run")
    schedules = [trial.name for trial in rivals.trials if trial.kind in STAGES_PER_PROCESS]
    if (fastest := best(rounds, schedules)) is not None:
        found[f"{options.ours} / best schedule of torch"] = ratios(rounds, options.ours, fastest)
    return {name: values for name, values in found.items() if values and len(set(name.split(" / "))) > 1}


def _baselines(rivals: Rivals) -> list[str]:
    """What one process makes."""
    return ["plain loop", our_name(1), *(trial.name for trial in rivals.trials if trial.kind == "end-to-end")]


def make_outcome(options: Options, rivals: Rivals, by_link: Mapping[str, Sequence[Round]]) -> Outcome:
    """Ratios by link, where there are several."""
    found: dict[str, list[float]] = {}
    bars: dict[str, dict[str, float]] = {}
    for link, rounds in by_link.items():
        where = "" if len(by_link) == 1 else f", {link}"
        found |= {f"{name}{where}": values for name, values in named_ratios(options, rivals, rounds).items()}
        shown = [options.ours, *_shown(rivals, rounds)]
        own = {name: [each[name] for each in rounds if name in each] for name in shown}
        bars[link] = {name: statistics.median(values) for name, values in own.items() if values}
    return Outcome(
        figures={"rounds": by_link, "errors": rivals.errors},
        ratios=found,
        picture=Bars(title=_title(options, next(iter(by_link))), unit="samples/s, median", bars=bars),
    )
