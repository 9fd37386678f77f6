"""The stream: every microbatch of a run, in the one order that all stages see.

Training passes and evaluations stand in one line, so a stage can train on the next epoch while a later one still
evaluates the last, and what is computed depends on the microbatches alone, not on who hosts which stage.

Numbers of samples only; standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distblock.messages import Item, Part, Purpose

SMALLEST_TAIL = 16
"""A last piece of fewer samples joins its predecessor: BatchNorm needs company."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The numbers that fix a stream.

    Attributes:
        num_train, num_validation, num_test: samples of each part.
        batch_size: samples a step.
        microbatch_size: samples that cross an edge in training, at most ``batch_size``.
        eval_microbatch_size: samples that cross an edge in evaluation.
        epochs: passes over the training part.
        evaluate_every: epochs between evaluations on the validation part.
    """

    num_train: int
    num_validation: int
    num_test: int
    batch_size: int
    microbatch_size: int
    eval_microbatch_size: int
    epochs: int
    evaluate_every: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return len(pieces(self.num_train, self.batch_size))


def pieces(num_samples: int, size: int) -> list[int]:
    """Cut samples into pieces of ``size``; a last one of under 16 (or under ``size``, if smaller) joins the one before.

    >>> pieces(100, 32)
    [32, 32, 36]
    >>> pieces(112, 32)
    [32, 32, 32, 16]
    """
    whole, tail = divmod(num_samples, size)
    sizes = [size] * whole
    if tail and (tail >= SMALLEST_TAIL or not sizes):
        sizes.append(tail)
    elif tail:
        sizes[-1] += tail
    return sizes


def evaluation_pass(part: Part, num_samples: int, microbatch_size: int) -> Iterator[Item]:
    """One evaluation by itself."""
    return _numbered(_evaluation(part, num_samples, microbatch_size, epoch=0))


def stream(plan: StreamPlan, *, out_of_time: Callable[[], bool] = lambda: False) -> Iterator[Item]:
    """All microbatches of a run: epochs, the validation part after them, and the test part once, at the end.

    Args:
        plan: the numbers.
        out_of_time: asked before each training batch; once it says so, training ends and the last evaluations follow.
    """
    return _numbered(_unnumbered(plan, out_of_time))


def _numbered(items: Iterator[Item]) -> Iterator[Item]:
    return (replace(item, number=number) for number, item in enumerate(items))


def _unnumbered(plan: StreamPlan, out_of_time: Callable[[], bool]) -> Iterator[Item]:
    epoch, stopped = 0, False
    for epoch in range(plan.epochs):
        for item in _training(plan, epoch):
            starts_batch = item.first_sample % plan.batch_size == 0
            if starts_batch and item.index > 0 and out_of_time():
                stopped = True
                break
            yield item
        stopped = stopped or out_of_time()
        if stopped or epoch == plan.epochs - 1:
            break
        if (epoch + 1) % plan.evaluate_every == 0:
            yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
    yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
    yield from _evaluation("test", plan.num_test, plan.eval_microbatch_size, epoch)


def _training(plan: StreamPlan, epoch: int) -> Iterator[Item]:
    batches = [pieces(batch, plan.microbatch_size) for batch in pieces(plan.num_train, plan.batch_size)]
    return _pass("train", "train", epoch, batches)


def _evaluation(part: Part, num_samples: int, microbatch_size: int, epoch: int) -> Iterator[Item]:
    return _pass("evaluate", part, epoch, [[size] for size in pieces(num_samples, microbatch_size)])


def _pass(purpose: Purpose, part: Part, epoch: int, batches: list[list[int]]) -> Iterator[Item]:
    index = first_sample = 0
    last = sum(len(batch) for batch in batches) - 1
    for batch in batches:
        for position, size in enumerate(batch):
            yield Item(
                number=0,
                purpose=purpose,
                part=part,
                epoch=epoch,
                index=index,
                first_sample=first_sample,
                num_samples=size,
                batch_samples=sum(batch),
                closes_batch=position == len(batch) - 1,
                closes_pass=index == last,
            )
            index += 1
            first_sample += size
