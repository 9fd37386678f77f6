"""Peak memory of the largest worker, against end-to-end training of the same network at the same batch.

Each stage trains by itself in a process of its own, on random inputs of its shape, and what its process grows by is
what a worker with that stage needs: weights, gradients, momentum and activations. On a GPU it is what torch has
allocated at most. The mark is Linux's high-water mark of resident memory, reset before the stage is built. Beside it,
all stages on one worker that holds one at a time and keeps the others on disk: the use on a small device.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Bars
from distblock.config import make_config
from distblock.learning.allocator import children_keep_memory
from distblock.learning.blueprint import Problem, draw_blueprint
from distblock.learning.host import Host, HostSpec
from distblock.messages import Item
from distblock.report.tables import size
from distblock.scratch.shelf import DiskShelf


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Peak memory by number of stages."""

    model: str = "resnet110"
    """network"""
    image_size: int = 96
    """side of the images"""
    batch_size: int = 64
    """samples a step"""
    stages: tuple[int, ...] = (2, 4, 8, 16)
    """numbers of stages, beside 1: end-to-end"""
    steps: int = 2
    """steps of each stage"""
    classifier: str = "conv"
    """auxiliary classifier"""
    gpu: bool = False
    """measure on a GPU"""


def main(arguments: Sequence[str]) -> None:
    """``distblock bench memory``.

    Raises:
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "memory", arguments)
    numbers = (1, *options.stages)
    peaks = {number: [_alone(options, number, (stage,)) for stage in range(number)] for number in numbers}
    one_worker = {number: _alone(options, number, tuple(range(number))) for number in options.stages}
    Console(width=120).print(_table(options, peaks, one_worker))
    conclude("memory", options, make_outcome(peaks, one_worker))


def make_outcome(peaks: Mapping[int, Sequence[int]], one_worker: Mapping[int, int]) -> Outcome:
    """Of peaks by number of stages, and by stage; ratios are over end-to-end training."""
    whole = max(peaks[1])
    largest = {number: max(own) for number, own in peaks.items() if number > 1}
    kinds = {"largest worker": largest, "one worker, one stage at a time": one_worker}
    ratios = {
        f"{kind} / end-to-end, {number} stages": [peak / whole]
        for kind, by_number in kinds.items()
        for number, peak in by_number.items()
    }
    bars = {
        kind: {"end-to-end": whole * 1e-6, **{f"{number} stages": peak * 1e-6 for number, peak in by_number.items()}}
        for kind, by_number in kinds.items()
    }
    return Outcome(
        figures={"peak_bytes": peaks, "one_worker_bytes": one_worker},
        ratios=ratios,
        picture=Bars(title="peak memory of training", unit="MB", bars=bars),
    )


def _alone(options: Options, num_stages: int, stages: tuple[int, ...]) -> int:
    """Bytes of these stages, in a process of their own."""
    with children_keep_memory(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_bytes, (options, num_stages, stages))


def peak_bytes(options: Options, num_stages: int, stages: tuple[int, ...]) -> int:
    """Bytes that training stages one after the other, with one of them resident, takes at most in this process."""
    torch.set_num_threads(1)
    spec = _spec(options, num_stages, range(stages[0], stages[-1] + 1))
    _reset_mark()
    base_bytes = _resident_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        host = Host(spec, clock=time.perf_counter, shelf=DiskShelf(Path(folder)))
        for stage in stages:
            _train(options, host, stage)
    if options.gpu:
        return torch.cuda.max_memory_allocated()
    return _resident_bytes("VmHWM") - base_bytes


def _train(options: Options, host: Host, stage: int) -> None:
    """Some steps on random inputs."""
    features = torch.randn(options.batch_size, *host.spec.blueprint.entering[stage][0], device=host.device)
    labels = torch.randint(10, (options.batch_size,), device=host.device)
    for step in range(options.steps):
        host.work(_item(options, stage, step), features, labels, first=stage)


def _spec(options: Options, num_stages: int, stages: range) -> HostSpec:
    config = make_config(
        {
            "data": {"batch_size": options.batch_size},
            "model": {"name": options.model, "stages": num_stages, "classifier": options.classifier},
            "regime": {"name": "end-to-end" if num_stages == 1 else "sequential"},
            "objective": {"tau": "inf" if num_stages == 1 else 1.0},
            "resources": {"gpus_per_worker": 1.0 if options.gpu else 0.0},
        }
    )
    problem = Problem(in_channels=3, image_size=options.image_size, num_classes=10)
    return HostSpec(
        run="bench",
        config=config,
        problem=problem,
        blueprint=draw_blueprint(config, problem),
        stages=stages,
        steps_per_epoch=options.steps,
        inputs=None,
        build=None,
    )


def _item(options: Options, stage: int, step: int) -> Item:
    return Item(
        number=step,
        purpose="train",
        part="train",
        epoch=0,
        index=step,
        first_sample=step * options.batch_size,
        num_samples=options.batch_size,
        batch_samples=options.batch_size,
        closes_batch=True,
        closes_pass=False,
        stage=stage,
    )


def _reset_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _table(options: Options, peaks: dict[int, list[int]], one_worker: dict[int, int]) -> Table:
    table = Table(
        title=f"{options.model}, {options.image_size} x {options.image_size}, batch {options.batch_size},"
        f" classifier {options.classifier}: peak memory of training"
    )
    saved = "less than end-to-end"
    for heading in ("stages", "largest worker", saved, "smallest worker", "one worker, one stage at a time", saved):
        table.add_column(heading, justify="right")
    whole = max(peaks[1])
    table.add_row("1 (end-to-end)", size(whole))
    for number, one in one_worker.items():
        largest, smallest = max(peaks[number]), min(peaks[number])
        less = [f"{100 * (1 - peak / whole):.0f} %" for peak in (largest, one)]
        table.add_row(str(number), size(largest), less[0], size(smallest), size(one), less[1])
    return table
