"""Peak memory of the largest worker, against end-to-end training of the same network at the same batch.

Each stage trains by itself in a process of its own, on random inputs of its shape, and what its process grows by is
what a worker with that stage needs: weights, gradients, momentum and activations. On a GPU it is what torch has
allocated at most. The mark is Linux's high-water mark of resident memory, reset before the stage is built.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from distblock.config import make_config
from distblock.learning.blueprint import Problem, draw_blueprint
from distblock.learning.host import HostSpec, build_stages
from distblock.messages import Item
from distblock.report.tables import size


@dataclass(frozen=True, kw_only=True)
class Options:
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
    output: str | None = None
    """write the figures as JSON here"""


def main(arguments: Sequence[str]) -> None:
    """``distblock bench memory``."""
    options = tyro.cli(Options, args=list(arguments), prog="distblock bench memory")
    peaks = {number: _peaks(options, number) for number in (1, *options.stages)}
    Console(width=120).print(_table(options, peaks))
    if options.output is not None:
        Path(options.output).write_text(json.dumps({"options": asdict(options), "peak_bytes": peaks}, indent=2))


def _peaks(options: Options, num_stages: int) -> list[int]:
    """Bytes of every stage, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for stage in range(num_stages):
        with context.Pool(1) as pool:
            peaks.append(pool.apply(stage_peak_bytes, (options, num_stages, stage)))
    return peaks


def stage_peak_bytes(options: Options, num_stages: int, index: int) -> int:
    """Bytes that training one stage takes at most, in this process."""
    torch.set_num_threads(1)
    config = make_config(
        {
            "data": {"batch_size": options.batch_size},
            "model": {"name": options.model, "stages": num_stages, "classifier": options.classifier},
            "regime": {"name": "end-to-end" if num_stages == 1 else "parallel"},
            "objective": {"tau": "inf" if num_stages == 1 else 1.0},
            "resources": {"gpus_per_worker": 1.0 if options.gpu else 0.0},
        }
    )
    problem = Problem(in_channels=3, image_size=options.image_size, num_classes=10)
    blueprint = draw_blueprint(config, problem)
    spec = HostSpec(
        run="bench",
        config=config,
        problem=problem,
        blueprint=blueprint,
        stages=range(index, index + 1),
        steps_per_epoch=options.steps,
        inputs=None,
        build=None,
    )
    _reset_mark()
    base_bytes = _resident_bytes("VmRSS")
    (stage,) = build_stages(spec, spec.stages)
    features = torch.randn(options.batch_size, *blueprint.entering[index][0], device=spec.device)
    labels = torch.randint(10, (options.batch_size,), device=spec.device)
    for step in range(options.steps):
        stage.train(_item(options, step), features, labels)
    if options.gpu:
        return torch.cuda.max_memory_allocated()
    return _resident_bytes("VmHWM") - base_bytes


def _item(options: Options, step: int) -> Item:
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
    )


def _reset_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _table(options: Options, peaks: dict[int, list[int]]) -> Table:
    table = Table(
        title=f"{options.model}, {options.image_size} x {options.image_size}, batch {options.batch_size},"
        f" classifier {options.classifier}: peak memory of training"
    )
    for heading in ("stages", "largest worker", "smallest worker", "less than end-to-end"):
        table.add_column(heading, justify="right")
    whole = max(peaks[1])
    for number, each in peaks.items():
        saved = "" if number == 1 else f"{100 * (1 - max(each) / whole):.0f} %"
        table.add_row("1 (end-to-end)" if number == 1 else str(number), size(max(each)), size(min(each)), saved)
    return table
