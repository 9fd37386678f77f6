"""What a rival's first losses have to be: those of distblock's own plain loop, end to end, from the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from distblock.bench.rivals.trials import CHECKED, Outcome, Task
from distblock.learning.host import Host
from distblock.messages import Item

TOLERANCE = 1e-5
"""Relative: gradients of microbatches are summed in another order, which makes 1e-7."""


def losses(task: Task, *, microbatches: int, threads: int = 1) -> tuple[float, ...]:
    """Of the first steps, with gradients summed over so many equal pieces of each batch.

    The threads are the rival's: another number of them changed a ResNet-20's third loss by 1e-3.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _losses(task, microbatches)
    finally:
        torch.set_num_threads(before)


def _losses(task: Task, microbatches: int) -> tuple[float, ...]:
    host = Host(task.spec(), clock=time.perf_counter)
    size = task.config.data.batch_size // microbatches
    means = []
    for step, (images, labels) in enumerate(task.load()[:CHECKED]):
        total = 0.0
        for piece in range(microbatches):
            part = slice(piece * size, (piece + 1) * size)
            item = _item(step, piece, size=size, microbatches=microbatches)
            [report] = host.work(item, images[part].to(host.device), labels[part].to(host.device)).reports
            total += report.loss_sum
        means.append(total / (size * microbatches))
    return tuple(means)


def checked(outcome: Outcome, expected: Sequence[float]) -> Outcome:
    """The outcome, or an error in its place where it trained something else."""
    if outcome.error is not None:
        return outcome
    pairs = list(zip(outcome.losses, expected, strict=True))
    if all(math.isclose(own, plain, rel_tol=TOLERANCE) for own, plain in pairs):
        return outcome
    step, (own, plain) = max(enumerate(pairs), key=lambda each: abs(each[1][0] - each[1][1]))
    return Outcome(
        losses=outcome.losses,
        error=f"trains something else: its loss after {step} steps is {own:.5f}, plain training's {plain:.5f}",
    )


def _item(step: int, piece: int, *, size: int, microbatches: int) -> Item:
    return Item(
        number=step * microbatches + piece,
        purpose="train",
        part="train",
        epoch=0,
        index=step * microbatches + piece,
        first_sample=(step * microbatches + piece) * size,
        num_samples=size,
        batch_samples=size * microbatches,
        closes_batch=piece == microbatches - 1,
        closes_pass=False,
    )
