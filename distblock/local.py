"""The plain loop: every stage in this process, one microbatch after the other.

It is the baseline of every comparison and the oracle of every test of the workers: same streams, same stages, same
codec, no Ray. With one stage it is end-to-end training. Where stages train one by one on cached inputs, one stage is
resident at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from distblock.codecs.cast import Features
from distblock.codecs.staging import Staging
from distblock.data.dataset import DataSet
from distblock.errors import PreemptedError
from distblock.learning.host import Host, HostSpec
from distblock.messages import Arrival, Departure, Item, WorkerReport
from distblock.metrics.observer import Recorder, Silent
from distblock.schedule.course import Course, Lane
from distblock.schedule.laps import Cell
from distblock.schedule.position import Position
from distblock.schedule.saving import CacheFiles, Held, NoSaver, Resumed, Saver
from distblock.scratch.features import FeatureCache, is_whole, new_folder
from distblock.scratch.shelf import DiskShelf

NODE = "localhost"
"""Where the plain loop's workers say they are."""

State = dict[int, dict[str, np.ndarray]]
"""Weights and buffers, by stage, then by name."""


def execute(
    spec: HostSpec,
    data: DataSet,
    course: Course,
    observer: Recorder,
    *,
    initial: Mapping[int, Mapping[str, np.ndarray]],
    resumed: Resumed | None = None,
    saver: Saver | None = None,
) -> State:
    """Run a job in this process.

    Args:
        spec: all stages.
        data: where the samples come from.
        course: the streams.
        observer: is told everything as it happens.
        initial: weights to start from, by stage; empty for none.
        resumed: what an earlier attempt has left, to go on from.
        saver: keeps checkpoints.

    Returns:
        The final weights and buffers, by stage, then by name.

    Raises:
        DataError: a sample cannot be read.
        StageError: a stage failed.
    """
    with _threads(spec.config.resources.threads_per_worker):
        loop = _Loop(spec, data, observer, resumed or Resumed(), saver or NoSaver())
        keeps_caches = False
        try:
            loop.host.load(initial)
            loop.host.load_training_state((resumed or Resumed()).states)
            course.miss(loop.missing(course.unread))
            observer.begin()
            while not course.is_finished:
                lanes = course.begin()
                for index, lane in enumerate(lanes):
                    loop.run(lane, lanes[index + 1 :], course.done)
                    loop.release(lane, course.finish(lane))
            return loop.host.states()
        except PreemptedError:
            keeps_caches = True
            raise
        finally:
            if not keeps_caches:
                loop.close()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Loop:
    """The hosted stages, and what lies between them."""

    def __init__(self, spec: HostSpec, data: DataSet, observer: Recorder, resumed: Resumed, saver: Saver) -> None:
        self._spec = spec
        self._saver = saver
        self._opened = set(resumed.caches.opened)
        self._expected = resumed.caches.sha256
        self._data = data
        self._observer = observer
        self._staging = Staging(spec.device)
        self._cache = None
        if spec.inputs == "cache":
            folder = resumed.caches.folder or new_folder(spec.run)
            self._cache = FeatureCache(spec.config.regime.cache_dir, run=spec.run, folder=folder)
            self._cache.adopt(resumed.caches.sha256)
        shelf = DiskShelf(self._cache.folder) if self._cache else None
        self.host = Host(spec, clock=time.perf_counter, shelf=shelf)
        self._idle_since_s = time.perf_counter()

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """Of cells that have left outputs, those whose files are not there."""
        if self._cache is None:
            return []
        found = self._cache.sha256
        return [cell for cell in cells if not is_whole(cell.stage, cell.lap, expected=self._expected, found=found)]

    def run(self, lane: Lane, later: Sequence[Lane], done: Sequence[Cell]) -> None:
        """One stream to its end.

        Args:
            lane: the stream.
            later: streams that have begun and come after it.
            done: cells that are done.
        """
        for item in lane.items:
            assert item is not None, "whatever a stream waits for has been told by now"
            # What is stored again has been counted when it was stored first.
            self._work(item, Silent() if lane.rebuilds else self._observer)
            self._saver.count(1)
            self._saver.check_preempted()
            # In the middle of a file there can be no checkpoint.
            if self._saver.is_due and item.purpose != "store":
                running = {lane.cell: lane.reached(item.number + 1)}
                running |= {other.cell: other.reached(other.start) for other in later}
                self._saver.begin(Position(running=running, done=tuple(done)))
                self._saver.finish([Held(fetch=self.host.training_states, caches=self._caches(), cost_s=0.0)])

    def _caches(self) -> CacheFiles:
        sha256 = {} if self._cache is None else dict(self._cache.sha256)
        return CacheFiles(sha256=sha256, opened=frozenset(self._opened))

    def _work(self, item: Item, observer: Recorder) -> None:
        """One microbatch through the stages that it is for."""
        reads = self._cache is not None and bool(item.stage)
        features, labels, arrivals = self._cached(item) if reads else self._images(item, observer)
        samples = self._data.samples(item) if self._spec.config.channel.remembers else None
        started_s = time.perf_counter()
        work = self.host.work(item, features, labels, first=item.stage if reads else None, samples=samples)
        departures = work.departures
        if item.purpose == "store":
            assert self._cache is not None
            channel = self._spec.config.channel
            departures += (self._cache.store(item, work.features, labels, channel=channel, staging=self._staging),)
        finished_s = time.perf_counter()
        observer.record(
            WorkerReport(
                worker=0,
                item=item,
                stages=work.reports,
                arrivals=(*arrivals, *work.arrivals),
                departures=departures,
                started_s=time.time() - (finished_s - started_s),
                finished_s=time.time(),
                idle_s=started_s - self._idle_since_s,
                peak_memory_bytes=self.host.peak_memory_bytes(),
                node=NODE,
            )
        )
        self._idle_since_s = finished_s

    def release(self, lane: Lane, unread: Sequence[Cell]) -> None:
        """A stream has ended; free what nobody will ask for any more."""
        for cell in unread:
            if self._cache is None:
                self.host.release(cell.stage, cell.lap)
            else:
                self._cache.release(cell.stage, cell.lap)
        last = self._spec.blueprint.num_stages - 1
        if lane.cell is not None and lane.cell.stage == last:
            for stage in range(last):
                self.host.release(stage, lane.cell.lap)

    def close(self) -> None:
        """Free what was set aside."""
        if self._cache is not None:
            self._cache.close()

    def _images(self, item: Item, observer: Recorder) -> tuple[Features, Tensor, tuple[Arrival, ...]]:
        images, labels = self._data.microbatch(item)
        departure = Departure(edge=0, payload_bytes=images.nbytes, wire_bytes=0, encode_s=0.0, put_s=0.0)
        observer.record_departure(departure, NODE, item)
        features = torch.from_numpy(images).to(self.host.device)
        arrival = Arrival(edge=0, fetch_s=0.0, decode_s=0.0, exposed_s=0.0)
        return features, torch.from_numpy(labels).to(self.host.device), (arrival,)

    def _cached(self, item: Item) -> tuple[Features, Tensor, tuple[Arrival, ...]]:
        assert self._cache is not None
        assert item.stage is not None
        positions, labels = self._data.positions(item)
        path = self._cache.path(item.stage - 1, item.lap, item.part)
        is_new = path.name not in self._opened
        self._opened.add(path.name)
        features, labels = self._cache.take(path, item, positions, labels, staging=self._staging)
        arrival = Arrival(edge=item.stage, fetch_s=0.0, decode_s=0.0, exposed_s=0.0)
        return features, labels, (arrival,) * (self._cache.num_batches(path) if is_new else 0)
