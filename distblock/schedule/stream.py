"""The stream: every microbatch of a run, in the one order that all stages see.

Training passes and evaluations stand in one line, so a stage can train on the next epoch while a later one still
evaluates the last, and what is computed depends on the microbatches alone, not on who hosts which stage.

Numbers of samples only; standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distblock.messages import Item, Part, Purpose
from distblock.schedule.laps import Cell
from distblock.schedule.stopping import Patience

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
    items = _evaluation(part, num_samples, microbatch_size, epoch=0)
    return (replace(item, number=number) for number, item in enumerate(items))


def stream(
    plan: StreamPlan,
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    patience: Patience | None = None,
    num_stages: int = 0,
) -> Iterator[Item | None]:
    """All microbatches of a run: epochs, the validation part after them, and the test part once, at the end.

    A stage that has lost patience goes on forward only. Its last evaluation lies an epoch back, so that the stream
    seldom has to wait for it.

    Args:
        plan: the numbers.
        out_of_time: asked before each training batch; once it says so, training ends and the last evaluations follow.
        patience: who has stopped; None: nobody.
        num_stages: stages that it is asked of.

    Yields:
        The next microbatch; None while the stream waits for an evaluation.
    """
    return _numbered(_all_stages(plan, out_of_time, patience or Patience(None), num_stages))


def lap_stream(
    plan: StreamPlan,
    cell: Cell,
    *,
    epochs: int,
    last_lap: bool,
    stores: bool,
    out_of_time: Callable[[], bool] = lambda: False,
    patience: Patience | None = None,
) -> Iterator[Item | None]:
    """All microbatches of one stage in one lap: epochs, the validation part after them, then what later stages read.

    In the last lap the test part follows, once. Epochs are counted over all laps. Stored outputs come in the order of
    the samples, in pieces as large as in training.

    Args:
        plan: the numbers; its ``epochs`` are not used.
        cell: whose.
        epochs: of the stage in a lap.
        last_lap: whether no lap follows.
        stores: whether the stage's outputs are kept for the next one.
        out_of_time: asked before each training batch; once it says so, nothing is trained any more, and what only a
            further training would read is left out.
        patience: when the stage has stopped; None: never.

    Yields:
        The next microbatch; None while the stream waits for an evaluation.
    """
    items = _one_stage(plan, cell, epochs, last_lap, stores, out_of_time, patience or Patience(None))
    return _numbered(replace(item, stage=cell.stage, lap=cell.lap) if item else None for item in items)


def store_stream(plan: StreamPlan, cell: Cell, *, epochs: int, last_lap: bool) -> Iterator[Item | None]:
    """What a cell stored at its end, once more: the end of its stream by itself."""
    epoch = (cell.lap + 1) * epochs - 1
    items = _storing(plan, epoch, with_test=last_lap)
    return _numbered(replace(item, stage=cell.stage, lap=cell.lap) for item in items)


def _numbered(items: Iterator[Item | None]) -> Iterator[Item | None]:
    number = 0
    for item in items:
        yield item and replace(item, number=number)
        number += item is not None


def _all_stages(
    plan: StreamPlan, out_of_time: Callable[[], bool], patience: Patience, num_stages: int
) -> Iterator[Item | None]:
    epoch, evaluated = 0, False
    for epoch in range(plan.epochs):
        known = _last_evaluated(plan, epoch - 1)
        while known is not None and not all(patience.is_known(stage, 0, known) for stage in range(num_stages)):
            yield None
        stopped = tuple(s for s in range(num_stages) if known is not None and patience.has_stopped(s, 0, known))
        if num_stages and len(stopped) == num_stages:
            epoch -= 1
            break
        for item in _training_in_time(plan, epoch, out_of_time):
            yield replace(item, stopped=stopped)
        evaluated = False
        if epoch == plan.epochs - 1 or out_of_time():
            break
        evaluated = (epoch + 1) % plan.evaluate_every == 0
        if evaluated:
            yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
    if not evaluated:
        yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
    yield from _evaluation("test", plan.num_test, plan.eval_microbatch_size, epoch)


def _last_evaluated(plan: StreamPlan, before: int) -> int | None:
    """The last epoch before one that is followed by an evaluation."""
    last = before // plan.evaluate_every * plan.evaluate_every - 1
    return last if last >= 0 else None


def _one_stage(
    plan: StreamPlan,
    cell: Cell,
    epochs: int,
    last_lap: bool,
    stores: bool,
    out_of_time: Callable[[], bool],
    patience: Patience,
) -> Iterator[Item | None]:
    first = cell.lap * epochs
    epoch, evaluated = first, False
    for epoch in range(first, first + epochs):
        is_last = epoch == first + epochs - 1
        if epoch > 0 and out_of_time():
            epoch = max(first, epoch - 1)
            break
        yield from _training_in_time(plan, epoch, out_of_time)
        evaluated = is_last or (epoch - first + 1) % plan.evaluate_every == 0
        if evaluated:
            yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
            while not is_last and not patience.is_known(cell.stage, cell.lap, epoch):
                yield None
        if patience.has_stopped(cell.stage, cell.lap, epoch):
            break
    if out_of_time() and not last_lap:
        return
    if not evaluated:
        yield from _evaluation("validation", plan.num_validation, plan.eval_microbatch_size, epoch)
    if last_lap:
        yield from _evaluation("test", plan.num_test, plan.eval_microbatch_size, epoch)
    if stores:
        yield from _storing(plan, epoch, with_test=last_lap)


def _training_in_time(plan: StreamPlan, epoch: int, out_of_time: Callable[[], bool]) -> Iterator[Item]:
    """An epoch, or as much of it as there is time for; its first batch always."""
    for item in _training(plan, epoch):
        starts_batch = item.first_sample % plan.batch_size == 0
        if starts_batch and item.index > 0 and out_of_time():
            return
        yield item


def _storing(plan: StreamPlan, epoch: int, *, with_test: bool) -> Iterator[Item]:
    parts: list[tuple[Part, int]] = [("train", plan.num_train), ("validation", plan.num_validation)]
    if with_test:
        parts.append(("test", plan.num_test))
    for part, num_samples in parts:
        yield from _pass("store", part, epoch, [[size] for size in pieces(num_samples, plan.microbatch_size)])


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
