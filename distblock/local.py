"""The plain loop: every stage in this process, one microbatch after the other.

It is the baseline of every comparison and the oracle of every test of the workers: same stream, same stages, same
codec, no Ray. With one stage it is end-to-end training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from distblock.data.dataset import DataSet
from distblock.learning.host import Host, HostSpec
from distblock.messages import Arrival, Departure, Item, WorkerReport
from distblock.metrics.observer import Recorder

NODE = "localhost"
"""Where the plain loop's workers say they are."""


def execute(
    spec: HostSpec,
    data: DataSet,
    items: Iterator[Item],
    observer: Recorder,
    *,
    initial: dict[int, dict[str, np.ndarray]],
) -> dict[int, dict[str, np.ndarray]]:
    """Run a job in this process.

    Args:
        spec: all stages.
        data: where the samples come from.
        items: the stream.
        observer: is told everything as it happens.
        initial: weights to start from, by stage; empty for none.

    Returns:
        The final weights and buffers, by stage, then by name.

    Raises:
        DataError: a sample cannot be read.
        StageError: a stage failed.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(spec.config.resources.threads_per_worker)
    try:
        host = Host(spec, clock=time.perf_counter)
        for stage in host.stages:
            stage.load({name: torch.from_numpy(array.copy()) for name, array in initial.get(stage.index, {}).items()})
        idle_since_s = time.perf_counter()
        for item in items:
            idle_since_s = _work(host, data, item, observer, idle_since_s)
        return {stage.index: {name: t.numpy() for name, t in stage.state().items()} for stage in host.stages}
    finally:
        torch.set_num_threads(num_threads)


def _work(host: Host, data: DataSet, item: Item, observer: Recorder, idle_since_s: float) -> float:
    """One microbatch through all stages; when it was done."""
    images, labels = data.microbatch(item)
    departure = Departure(edge=0, payload_bytes=images.nbytes, wire_bytes=0, encode_s=0.0, put_s=0.0)
    observer.record_departure(departure, NODE)
    features = torch.from_numpy(images).to(host.device)
    started_s = time.perf_counter()
    work = host.work(item, features, torch.from_numpy(labels).to(host.device))
    finished_s = time.perf_counter()
    observer.record(
        WorkerReport(
            worker=0,
            item=item,
            stages=work.reports,
            arrivals=(Arrival(edge=0, fetch_s=0.0, decode_s=0.0, exposed_s=0.0), *work.arrivals),
            departures=work.departures,
            started_s=time.time() - (finished_s - started_s),
            finished_s=time.time(),
            idle_s=started_s - idle_since_s,
            peak_memory_bytes=host.peak_memory_bytes(),
            node=NODE,
        )
    )
    return finished_s
