"""A run's attempts: most have one. What takes a node, or all workers, ends an attempt; the next goes on from the last
checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from distblock import local
from distblock.errors import AttemptLostError, StorageError, WorkerLostError
from distblock.messages import Failure, FailureKind
from distblock.metrics.accounting import Account
from distblock.preparation import Prepared, about, make_course
from distblock.report.monitor import Monitor
from distblock.resuming import before, restore
from distblock.runs import HOPS, METRICS, RunDirectory, State
from distblock.runs.checkpoints import Checkpoint, Restored
from distblock.runtime import driver
from distblock.saving import CheckpointSaver, told_to_end
from distblock.schedule.course import Course
from distblock.schedule.failure import Failures
from distblock.schedule.saving import CacheFiles, Resumed
from distblock.schedule.stopping import Patience
from distblock.scratch.features import folder_of

TRIES_S = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each try to write a result."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run has come to.

    Attributes:
        state: the final weights and buffers.
        peak_bytes: most bytes of caches or frozen copies at once.
        kept: the checkpoints that are there.
    """

    state: State
    peak_bytes: int
    kept: Sequence[Checkpoint]


class Attempts:
    """All attempts of a run.

    Args:
        prepared: the run.
        job: the same for the cluster.
        directory: where its checkpoints are.
        monitor: is told everything.
        patience: is told validation accuracies.
        is_resumed: whether the run goes on from a checkpoint.
    """

    def __init__(
        self,
        prepared: Prepared,
        job: driver.Job,
        directory: RunDirectory,
        monitor: Monitor,
        patience: Patience,
        *,
        is_resumed: bool,
    ) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._job = replace(job, storage=directory)
        self._directory = directory
        self._monitor = monitor
        self._patience = patience
        self._failures = Failures(self._config.recovery.max_failures)
        # The same for whoever goes on with the run, so that nothing is left of one that was killed.
        self._folder = folder_of(directory.name, directory.location)
        self._from: Restored | None = None
        self._attempt = 0
        if is_resumed:
            self._resume()
        self._saver = CheckpointSaver(
            self._config.checkpoint,
            directory,
            monitor,
            about=about(prepared),
            cache_folder=self._folder,
            beside=self._config.executor == "ray",
        )
        self._saver.forget_newer(None if self._from is None else self._from.number)

    def run(self) -> Outcome:
        """Until one comes to its end.

        Raises:
            WorkerLostError: there were more failures than the run is to survive.
        """
        with told_to_end(self._saver.preempt):
            try:
                state, course = self._last_attempt()
            finally:
                # However it ends: whoever goes on with the run finds nobody writing into its directory.
                self._close()
        return Outcome(state=state, peak_bytes=course.peak_bytes, kept=tuple(self._saver.kept))

    def _last_attempt(self) -> tuple[State, Course]:
        while True:
            course = self._course()
            try:
                return self._execute(course), course
            except AttemptLostError as lost:
                self._go_back(lost)

    def _close(self) -> None:
        unsaved = self._saver.close()
        if unsaved is not None:
            self._monitor.note(f"not saved: {unsaved}")

    def _course(self) -> Course:
        limit_s = self._config.regime.max_time_s
        return make_course(
            self._prepared,
            patience=self._patience,
            out_of_time=lambda: limit_s is not None and self._monitor.elapsed_s >= limit_s,
            position=self._from and self._from.position,
        )

    def _execute(self, course: Course) -> State:
        resumed = Resumed(caches=CacheFiles(folder=self._folder))
        if self._from is not None:
            resumed = Resumed(states=self._from.states, caches=self._from.caches)
        if self._config.executor == "local":
            return local.execute(
                self._job.hosts[0],
                self._prepared.data,
                course,
                self._monitor,
                initial=self._job.initial,
                resumed=resumed,
                saver=self._saver,
            )
        attempt, self._attempt = self._attempt, self._attempt + 1
        keeps_caches = self._config.checkpoint.is_on
        job = replace(self._job, resumed=resumed, keeps_caches=keeps_caches, attempt=attempt)
        return driver.execute(
            job, course, self._monitor, note=self._note_waiting, saver=self._saver, failures=self._failures
        )

    def _note_waiting(self, text: str) -> None:
        self._saver.check_preempted()
        self._monitor.note(text)

    def _resume(self) -> None:
        restored, is_cut_elsewhere = restore(
            self._directory, blueprint=self._prepared.blueprint, note=self._monitor.note
        )
        if restored is None:
            self._monitor.note("no checkpoint: the run begins anew")
            return
        self._take_up(restored, is_cut_elsewhere=is_cut_elsewhere)
        self._monitor.note(f"going on from checkpoint {restored.number}")
        self._monitor.expect_recovery(_interrupted(restored))

    def _take_up(self, restored: Restored, *, is_cut_elsewhere: bool) -> None:
        self._from = restored
        self._folder = restored.caches.folder
        recorded = restored.recorded
        account = Account.from_json(recorded.account)
        self._monitor.restore(account, recorded.hops, elapsed_s=recorded.elapsed_s)
        if is_cut_elsewhere:
            self._set_aside(restored)

    def _set_aside(self, restored: Restored) -> None:
        """Figures of other stages: they are kept apart, and counted anew."""
        self._directory.write_table(before(restored.number, METRICS), self._monitor.metrics_table())
        self._directory.write_table(before(restored.number, HOPS), self._monitor.hops_table())
        empty = Account(num_stages=self._prepared.blueprint.num_stages)
        self._monitor.restore(empty, restored.recorded.hops.slice(0, 0), elapsed_s=restored.recorded.elapsed_s)

    def _go_back(self, lost: AttemptLostError) -> None:
        """To the last checkpoint, or to the beginning."""
        survived = self._monitor.account.failures
        passed = self._saver.passed
        self._saver.reset()
        restored, is_cut_elsewhere = restore(
            self._directory, blueprint=self._prepared.blueprint, note=self._monitor.note
        )
        place = "the beginning" if restored is None else f"checkpoint {restored.number}"
        last = self._failures.tell(lost.who, place, lost.cause)
        if last is not None:
            raise WorkerLostError(f"{lost} ({last})")
        if restored is None:
            self._from = None
            empty = Account(num_stages=self._prepared.blueprint.num_stages)
            self._monitor.restore(empty, self._monitor.hops_table().slice(0, 0), elapsed_s=0.0)
        else:
            self._take_up(restored, is_cut_elsewhere=is_cut_elsewhere)
        self._saver.forget_newer(None if restored is None else restored.number)
        for failure in survived[len(self._monitor.account.failures) :]:
            self._monitor.keep_failure(failure)
        self._monitor.note(f"{lost}; all stages go back to {place}")
        failure = Failure(
            kind=cast(FailureKind, lost.kind),
            who=lost.who,
            place=place,
            cause=lost.cause,
            replayed=passed,
            held_up_s=0.0,
        )
        self._monitor.expect_recovery(failure)


class Keeper:
    """Writes results, and does not give up at once.

    Args:
        directory: where they go.
        note: is told of each try that fails.
    """

    def __init__(self, directory: RunDirectory, *, note: Callable[[str], None]) -> None:
        self._directory = directory
        self._note = note
        self._lost: dict[str, str] = {}

    def write(self, what: str, write: Callable[[], None]) -> bool:
        """Write one, with several tries; whether it is written."""
        for wait_s in TRIES_S:
            time.sleep(wait_s)
            try:
                write()
            except Exception as error:  # a file system of the user's own may raise anything
                self._lost[what] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self._note(f"{what} could not be written: {self._lost[what]}")
            else:
                self._lost.pop(what, None)
                return True
        return False

    def check(self, kept: Sequence[Checkpoint]) -> None:
        """See that all is written.

        Raises:
            StorageError: it is not; the message says what is missing, why, and what there is.
        """
        if not self._lost:
            return
        there = f"its last checkpoint is {kept[-1].number}" if kept else "it has no checkpoint"
        raise StorageError(
            f"{self._directory.location}: training has ended, but {', '.join(self._lost)} could not be written"
            f" ({next(iter(self._lost.values()))}); {there}; once there is room, distblock resume trains the rest again"
        )


def _interrupted(restored: Restored) -> Failure:
    return Failure(
        kind="interrupted",
        who="the run",
        place=f"checkpoint {restored.number}",
        cause="it had not ended, and was resumed",
        replayed=0,
        held_up_s=0.0,
    )
