"""Checkpoints are written beside the training: the executor cuts, a thread writes, and nobody waits for the storage.

A storage that fails does not end a run: what could not be written is told, and tried again with the next cut. A run
that is told to end (SIGTERM) takes one more cut first, within a limit.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from distblock.config import CheckpointsConfig
from distblock.errors import PreemptedError
from distblock.messages import Failure
from distblock.report.monitor import Fork, Monitor
from distblock.runs import RunDirectory, checkpoints
from distblock.runs.bundle import MANIFEST
from distblock.runs.checkpoints import Checkpoint, Recorded
from distblock.schedule.pace import Pace
from distblock.schedule.position import Position
from distblock.schedule.saving import CacheFiles, Held


@dataclass(frozen=True, kw_only=True)
class _Written:
    checkpoint: Checkpoint
    cost_s: float


class CheckpointSaver:
    """Keeps a run's checkpoints; a `distblock.schedule.saving.Saver`.

    Args:
        config: how often, and how many.
        directory: the run.
        monitor: knows what has been recorded.
        about: what to say of the network and the data.
        cache_folder: name of the folder with the run's caches.
        beside: write in a thread of its own; else the executor waits.

    Attributes:
        kept: the checkpoints that are there, in order.
        passed: microbatches that have passed all stages since the last of them.
    """

    def __init__(
        self,
        config: CheckpointsConfig,
        directory: RunDirectory,
        monitor: Monitor,
        *,
        about: Mapping[str, Any],
        cache_folder: str,
        beside: bool,
    ) -> None:
        self._config = config
        self._directory = directory
        self._monitor = monitor
        self._about = about
        self._cache_folder = cache_folder
        self._beside = beside
        self._pace = Pace(every_s=config.every_s, every_microbatches=config.every_microbatches)
        self.kept = checkpoints.list_checkpoints(directory)
        self.passed = 0
        self._number = max(checkpoints.numbers(directory), default=0)
        self._position = Position()
        self._passed_before = 0
        self._writing: Future[_Written] | None = None
        self._preempted_s: float | None = None
        self._is_last = False
        self._failed: str | None = None

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is to be taken now."""
        if self._preempted_s is not None:
            return not self._is_last and self._config.is_on
        return self._writing is None and self._pace.is_due(time.monotonic())

    def count(self, microbatches: int) -> None:
        """So many more have passed through all stages."""
        self.passed += microbatches
        self._pace.count(microbatches)

    def begin(self, position: Position) -> None:
        """A checkpoint at this position is on its way."""
        self._is_last = self._preempted_s is not None
        self._pace.begin(time.monotonic())
        self._position = position
        self._passed_before = self.passed
        self._monitor.fork(position)

    def finish(self, held: Sequence[Held]) -> None:
        """All that belongs to it is there.

        Raises:
            PreemptedError: the run was told to end, and this was waited for.
        """
        recorded = _recorded(self._monitor.take_fork())
        if self._preempted_s is not None:
            self._await(self._left_s)
        if self._writing is None:
            self._number += 1
            self._write(self._number, held, recorded)
        if self._preempted_s is not None and self._is_last:
            self._await(self._left_s)
            self.check_preempted(is_over=True)

    @property
    def _left_s(self) -> float:
        """Seconds that are left to a run that has been told to end."""
        return (self._preempted_s or 0.0) + self._config.grace_s - time.monotonic()

    def preempt(self) -> None:
        """The run has been told to end."""
        self._preempted_s = self._preempted_s or time.monotonic()

    def check_preempted(self, *, is_over: bool = False) -> None:
        """See what has become of a checkpoint that is being written, and whether the run has to end.

        Raises:
            PreemptedError: it was told to, and no more time is left, or nothing is left to wait for.
        """
        if self._writing is not None and self._writing.done():
            self._close_writing(self._writing)
        if self._preempted_s is None:
            return
        late = time.monotonic() - self._preempted_s > self._config.grace_s
        if is_over or late or not self._config.is_on or not self._monitor.has_begun:
            last = f"its last checkpoint is {self.kept[-1].number}" if self.kept else "it has no checkpoint"
            why = (
                f" (not written: {self._failed})"
                if self._failed
                else " (there was no time for another)"
                if late
                else ""
            )
            raise PreemptedError(f"told to end; {last}{why}; go on with: distblock resume {self._directory.location}")

    def forget_newer(self, number: int | None) -> None:
        """The run goes on from a checkpoint, or from its beginning (None): newer ones cannot be used."""
        self.kept = [checkpoint for checkpoint in self.kept if number is not None and checkpoint.number <= number]

    def reset(self) -> None:
        """The run has gone back to the last checkpoint."""
        self._await(self._config.grace_s)
        self._is_last = False
        self.passed = 0

    def close(self) -> str | None:
        """Wait for the one that is being written; what could not be written, if that was the last one."""
        self._await(self._config.grace_s if self._preempted_s is None else self._left_s)
        if self._writing is not None:
            return f"the checkpoint being written: no end after {self._config.grace_s:g} s"
        return self._failed

    def _write(self, number: int, held: Sequence[Held], recorded: Recorded) -> None:
        caches = CacheFiles(
            folder=self._cache_folder,
            sha256=dict(chain.from_iterable(each.caches.sha256.items() for each in held)),
            opened=frozenset(chain.from_iterable(each.caches.opened for each in held)),
        )
        cost_s, position = max(each.cost_s for each in held), self._position
        future: Future[_Written] = Future()

        def write() -> None:
            # What a thread waits for costs nobody anything, unless all wait for the thread.
            clock = time.thread_time if self._beside else time.monotonic
            begun_s = clock()
            try:
                written = checkpoints.write_checkpoint(
                    self._directory,
                    number,
                    states=chain.from_iterable(each.fetch() for each in held),
                    position=position,
                    caches=caches,
                    recorded=recorded,
                    about=self._about,
                )
                future.set_result(_Written(checkpoint=written, cost_s=cost_s + clock() - begun_s))
            except BaseException as error:
                future.set_exception(error)

        self._writing = future
        if self._beside:
            # No process waits for a thread that hangs in a storage.
            threading.Thread(target=write, name="distblock-checkpoint", daemon=True).start()
        else:
            write()

    def _await(self, seconds: float) -> None:
        if self._writing is None:
            return
        try:
            self._writing.exception(timeout=max(0.0, seconds))
        except TimeoutError:
            return
        self._close_writing(self._writing)

    def _close_writing(self, writing: Future[_Written]) -> None:
        self._writing = None
        error = writing.exception()
        if error is not None:
            self._note_failure(error)
            return
        written = writing.result()
        self._failed = None
        self._pace.finish(cost_s=written.cost_s, is_written=True)
        self.kept.append(written.checkpoint)
        self.passed -= self._passed_before
        self._remove_others()

    def _note_failure(self, error: BaseException) -> None:
        # What there is of it takes room that the next one may need.
        with suppress(Exception):
            self._directory.remove_folder(checkpoints.folder_of(self._number), first=MANIFEST)
        self._failed = f"checkpoint {self._number}: {' '.join(str(error).split())}"
        self._pace.finish(cost_s=0.0, is_written=False)
        self._monitor.note(f"{self._failed}; training goes on, and it is tried again")
        self._monitor.record_failure(
            Failure(
                kind="checkpoint_failed",
                who=f"checkpoint {self._number}",
                place=self._directory.location,
                cause=f"{type(error).__name__}: {' '.join(str(error).split())}",
                replayed=0,
                held_up_s=0.0,
            )
        )

    def _remove_others(self) -> None:
        config = self._config
        removed = checkpoints.to_remove(
            self.kept, num_to_keep=config.num_to_keep, score=config.score, order=config.score_order
        )
        self.kept = [checkpoint for checkpoint in self.kept if checkpoint not in removed]
        kept = {checkpoint.number for checkpoint in self.kept}
        try:
            for number in checkpoints.numbers(self._directory):
                # Those that were never finished, or are damaged, go as well.
                if number not in kept:
                    self._directory.remove_folder(checkpoints.folder_of(number), first=MANIFEST)
        except Exception as error:  # a file system of the user's own may raise anything
            self._monitor.note(f"checkpoints that are not kept could not be removed: {error}")


def _recorded(fork: Fork) -> Recorded:
    latest: dict[int, dict[str, float | None]] = {}
    for row in fork.account.rows():
        # A figure stays what it was until the next epoch has it.
        figures = {
            "val_accuracy": row.validation_accuracy,
            "val_loss": row.validation_loss,
            "val_transport_cost": row.validation_transport_cost,
            "train_accuracy": row.train_accuracy,
            "train_loss": row.train_loss,
            "train_transport_cost": row.train_transport_cost,
        }
        known = latest.setdefault(row.stage, dict.fromkeys(figures))
        known.update({name: value for name, value in figures.items() if value is not None})
    stages = [figures for _, figures in sorted(latest.items())]
    best = max(stages, key=lambda stage: stage["val_accuracy"] or 0.0, default={})
    return Recorded(
        account=fork.account.to_json(),
        hops=fork.hops.table(fork.account),
        elapsed_s=fork.elapsed_s,
        metrics={**best, "stages": stages},
    )


@contextmanager
def told_to_end(tell: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM is a word to the run; only where signals arrive, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: tell())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
