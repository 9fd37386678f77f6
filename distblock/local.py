"""The plain loop: every stage in this process, one microbatch after the other.

It is the baseline of every comparison and the oracle of every test of the workers: same streams, same stages, same
codec, no Ray. With one stage it is end-to-end training. Where stages train one by one on cached inputs, one stage is
resident at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from distblock.codecs.cast import Features
from distblock.codecs.staging import Staging
from distblock.data.dataset import DataSet
from distblock.learning.host import Host, HostSpec
from distblock.messages import Arrival, Departure, Item, WorkerReport
from distblock.metrics.observer import Recorder
from distblock.schedule.course import Course
from distblock.scratch.features import FeatureCache
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
) -> State:
    """Run a job in this process.

    Args:
        spec: all stages.
        data: where the samples come from.
        course: the streams.
        observer: is told everything as it happens.
        initial: weights to start from, by stage; empty for none.

    Returns:
        The final weights and buffers, by stage, then by name.

    Raises:
        DataError: a sample cannot be read.
        StageError: a stage failed.
    """
    with _threads(spec.config.resources.threads_per_worker):
        loop = _Loop(spec, data, observer)
        try:
            loop.host.load(initial)
            observer.begin()
            while not course.is_finished:
                for lane in course.begin():
                    for item in lane.items:
                        assert item is not None, "whatever a stream waits for has been told by now"
                        loop.work(item)
                    for cell in course.finish(lane):
                        loop.release(cell.stage, cell.lap)
            return loop.host.states()
        finally:
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

    def __init__(self, spec: HostSpec, data: DataSet, observer: Recorder) -> None:
        self._spec = spec
        self._data = data
        self._observer = observer
        self._staging = Staging(spec.device)
        self._cache = None
        if spec.inputs == "cache":
            self._cache = FeatureCache(spec.config.regime.cache_dir, run=spec.run)
        shelf = DiskShelf(self._cache.folder) if self._cache else None
        self.host = Host(spec, clock=time.perf_counter, shelf=shelf)
        self._idle_since_s = time.perf_counter()

    def work(self, item: Item) -> None:
        """One microbatch through the stages that it is for."""
        reads = self._cache is not None and bool(item.stage)
        features, labels, arrivals = self._cached(item) if reads else self._images(item)
        started_s = time.perf_counter()
        work = self.host.work(item, features, labels, first=item.stage if reads else None)
        departures = work.departures
        if item.purpose == "store":
            assert self._cache is not None
            codec = self._spec.config.channel.codec
            departures += (self._cache.store(item, work.features, labels, codec=codec, staging=self._staging),)
        finished_s = time.perf_counter()
        self._observer.record(
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

    def release(self, stage: int, lap: int) -> None:
        """Nobody will ask any more for the stage as it was after the lap."""
        self.host.release(stage, lap)
        if self._cache is not None:
            self._cache.release(stage, lap)

    def close(self) -> None:
        """Free what was set aside."""
        if self._cache is not None:
            self._cache.close()

    def _images(self, item: Item) -> tuple[Features, Tensor, tuple[Arrival, ...]]:
        images, labels = self._data.microbatch(item)
        departure = Departure(edge=0, payload_bytes=images.nbytes, wire_bytes=0, encode_s=0.0, put_s=0.0)
        self._observer.record_departure(departure, NODE)
        features = torch.from_numpy(images).to(self.host.device)
        arrival = Arrival(edge=0, fetch_s=0.0, decode_s=0.0, exposed_s=0.0)
        return features, torch.from_numpy(labels).to(self.host.device), (arrival,)

    def _cached(self, item: Item) -> tuple[Features, Tensor, tuple[Arrival, ...]]:
        assert self._cache is not None
        assert item.stage is not None
        positions, labels = self._data.positions(item)
        path = self._cache.path(item.stage - 1, item.lap, item.part)
        is_new = not self._cache.is_open(path)
        features, labels = self._cache.take(path, item, positions, labels, staging=self._staging)
        arrival = Arrival(edge=item.stage, fetch_s=0.0, decode_s=0.0, exposed_s=0.0)
        return features, labels, (arrival,) * (self._cache.num_batches(path) if is_new else 0)
