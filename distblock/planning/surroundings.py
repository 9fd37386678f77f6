"""What a planner has to know beside the network: the data's seconds, a process's memory, the rate of a copy."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time

from distblock.codecs.memcpy import memcpy_bytes_per_s
from distblock.config import Config
from distblock.data.dataset import DataSet
from distblock.errors import RunFailedError
from distblock.learning.allocator import children_keep_memory, jemalloc_here
from distblock.messages import Item
from distblock.planning.layout import Surroundings
from distblock.schedule.parcels import parcel_size

CALL_S = 0.003
"""Processor seconds of a call at the worker and at the driver together, whatever it carries: 1.5 ms each on one core of
an AMD EPYC, by ``distblock bench driver``."""

RAY_CORES = 0.05
"""Of a core, what Ray's own processes of a node keep busy (raylet and agents; on the first, GCS and dashboard): 0.05 on
an AMD EPYC while two workers trained ResNet-20."""

CONNECTED_BYTES = 30e6
"""That a worker's process takes more than what it has imported and what its stages take in a trial, once it is one of
Ray's: 26 to 34 MB by small stages of ResNets on digits, on a CPU."""

ALLOCATED = 1.0
"""Memory that a step takes for a byte that it keeps, with what jemalloc leaves between tensors: 0.9 to 1.1 by trials of
ResNet-8, -20 and -32, batches of 64 to 256, on a CPU."""

ALLOCATED_OTHERWISE = 1.7
"""The same with glibc, ResNet-8 and -20, batches of 32 to 256."""

_BASE = """
import os, psutil, ray, torch
from distblock.learning.host import Host
from distblock.runtime.worker import StageWorker
print(psutil.Process().memory_info().rss)
"""


def look_around(
    config: Config, data: DataSet, *, step_s: float, cores: int | None, link_bytes_per_s: float
) -> Surroundings:
    """Measure what is here.

    Args:
        config: the settings.
        data: where the samples come from.
        step_s: seconds of a step of one worker, about: quick ones travel several a call.
        cores: of a node; none: of this machine.
        link_bytes_per_s: between nodes, as it is told.
    """
    size = parcel_size(config, ())
    size.tell(0, step_s)
    on_gpu = config.resources.gpus_per_worker > 0
    channel = config.channel
    is_free = channel.microbatches_per_call == "auto"
    return Surroundings(
        cores=cores or len(os.sched_getaffinity(0)),
        link_bytes_per_s=link_bytes_per_s,
        memcpy_bytes_per_s=memcpy_bytes_per_s(),
        base_bytes=0.0 if on_gpu else _base_bytes() + CONNECTED_BYTES,
        per_call=size.count,
        call_bytes=channel.max_in_flight_bytes / channel.max_in_flight if is_free else math.inf,
        past_store_bytes=channel.past_store_bytes,
        allocated=ALLOCATED_OTHERWISE if on_gpu or jemalloc_here() is None else ALLOCATED,
        num_train=data.info.num_train,
        codec_cache_bytes=channel.codec_cache_bytes,
        call_s=CALL_S / size.count,
        data_s=_data_s(config, data),
        data_workers=config.data.workers,
        threads=0 if on_gpu else config.resources.threads_per_worker,
        ray_cores=RAY_CORES,
    )


def _base_bytes() -> int:
    """Of a worker's process that hosts nothing yet."""
    with children_keep_memory():
        done = subprocess.run([sys.executable, "-c", _BASE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailedError(f"plan: a process to measure did not start: {done.stderr[-300:]}")
    return int(done.stdout.split()[-1])


def _data_s(config: Config, data: DataSet) -> float:
    """A microbatch that is read for the second time: in later epochs decoded images are in memory, where they fit."""
    count = min(config.data.train_microbatch, data.info.num_train)
    item = Item.of_batch(0, count)
    taken = []
    for _ in range(4):
        begun_s = time.perf_counter()
        data.microbatch(item)
        taken.append(time.perf_counter() - begun_s)
    return statistics.median(taken[1:])
