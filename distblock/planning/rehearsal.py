"""A plan's stages for some steps, all at once, as workers will run them: what they take of this machine together.

Sums over blocks leave out what stages take from each other (caches, memory bandwidth), what a step has beside its
blocks, and what an allocator keeps between tensors. So the layouts that look best are tried, on random inputs and
without Ray. On a CPU a step's seconds are the processor's: whatever else the machine does at the moment, and how many
stages take turns on its cores, is not the stage's doing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from threading import Barrier, BrokenBarrierError

import torch

from distblock.codecs.cast import Features, num_bytes
from distblock.config import Config
from distblock.errors import RunFailedError
from distblock.learning.blueprint import Build, Problem, draw_blueprint
from distblock.learning.host import Host, HostSpec
from distblock.learning.memory import KEEP_MEMORY, PeakMemory
from distblock.messages import Item
from distblock.planning.inputs import entering
from distblock.planning.layout import IN_FLIGHT, Rehearsed

SECONDS = 3.0
"""That all stages go on for, so that none has the machine to itself."""

LEAST = 5
"""Steps that count, however long they take."""

WARM_UP = 2

STEPS_PER_EPOCH = 1000
"""For the learning rate alone, which is of no account here."""

PATIENCE_S = 300.0
"""In which all processes have to be ready."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a process is told."""

    spec: HostSpec
    num_samples: int


def rehearse(
    config: Config, problem: Problem, *, nodes: Sequence[str], cores: int, build: Build | None = None
) -> tuple[Rehearsed, ...]:
    """Run each stage of a partition in processes of its own.

    Args:
        config: the settings, the partition in them.
        problem: what the network is built for.
        nodes: of each stage's worker: those of one node run at the same time.
        cores: of a node; no more run at once: what their taking turns costs depends on who waits for whom, which is
            not so here.
        build: the user's own network.

    Raises:
        RunFailedError: a process was ended from outside.
    """
    count = max(1, config.data.train_microbatch // config.replicas)
    # A replica computes its share by itself; here nobody exchanges gradients.
    alone = config.model_copy(update={"replicas": 1})
    blueprint = draw_blueprint(alone, problem, build=build)
    whole = HostSpec(
        run="plan",
        config=alone,
        problem=problem,
        blueprint=blueprint,
        stages=range(blueprint.num_stages),
        steps_per_epoch=STEPS_PER_EPOCH,
        inputs=None,
        build=build,
    )
    tasks = [_Task(spec=replace(whole, stages=range(stage, stage + 1)), num_samples=count) for stage in whole.stages]
    found: dict[int, Rehearsed] = {}
    for node in dict.fromkeys(nodes):
        own = [stage for stage in range(blueprint.num_stages) if nodes[stage] == node]
        every = [stage for stage in own for _ in range(config.replicas)]
        most = _at_once(config, cores)
        if len(every) > most:
            # In the last wave, too, none has the memory bandwidth to itself.
            every += every[: -len(every) % most]
        waves = [every[start : start + most] for start in range(0, len(every), most)]
        results = [result for wave in waves for result in _together([tasks[stage] for stage in wave])]
        for stage in own:
            found[stage] = _mean([result for place, result in zip(every, results, strict=True) if place == stage])
    return tuple(found[stage] for stage in range(blueprint.num_stages))


def _at_once(config: Config, cores: int) -> int:
    """Processes: as will compute at once on a node, and as this machine can; on GPUs, those that share one."""
    resources = config.resources
    if resources.gpus_per_worker:
        return max(1, int(1 / resources.gpus_per_worker))
    return max(1, min(cores, len(os.sched_getaffinity(0)) // resources.threads_per_worker))


def _mean(results: Sequence[Rehearsed]) -> Rehearsed:
    return Rehearsed(
        step_s=statistics.mean(result.step_s for result in results),
        memory_bytes=max(result.memory_bytes for result in results),
    )


def _together(tasks: Sequence[_Task]) -> list[Rehearsed]:
    context = get_context("spawn")
    with (
        _environment(KEEP_MEMORY),
        ProcessPoolExecutor(
            len(tasks), mp_context=context, initializer=_meet_at, initargs=(context.Barrier(len(tasks)),)
        ) as pool,
    ):
        futures = [pool.submit(_perform, task) for task in tasks]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if isinstance(error, BrokenProcessPool):
            raise RunFailedError(
                "plan: a process that tried a stage did not start or was ended by the system; if the machine is out of"
                " memory, take smaller microbatches (--data.microbatch-size); a script of your own needs"
                " `if __name__ == '__main__':` around what it does"
            ) from error
        # Those that waited for it are no cause.
        if not isinstance(error, BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """For processes that begin meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_barrier: Barrier | None = None


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _perform(task: _Task) -> Rehearsed:
    """In a process of its own."""
    assert _barrier is not None
    config, on_gpu = task.spec.config, task.spec.device.type == "cuda"
    torch.set_num_threads(config.resources.threads_per_worker)
    try:
        before_bytes = 0 if on_gpu else PeakMemory().so_far()
        features = entering(
            config,
            task.spec.problem,
            first=task.spec.blueprint.partition.stages[task.spec.stages.start].start,
            num_samples=task.num_samples,
            device=task.spec.device,
            build=task.spec.build,
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(task.spec.device)
        host = Host(task.spec, clock=time.perf_counter)
        labels = torch.zeros(task.num_samples, dtype=torch.int64, device=host.device)
    except BaseException:
        _barrier.abort()
        raise
    _barrier.wait(PATIENCE_S)
    clock = time.thread_time if not on_gpu and torch.get_num_threads() == 1 else time.perf_counter
    leaving: deque[Features] = deque(maxlen=IN_FLIGHT)
    taken: list[float] = []
    ends_s = time.perf_counter() + SECONDS
    while len(taken) < WARM_UP + LEAST or time.perf_counter() < ends_s:
        begun_s = clock()
        work = host.work(Item.of_batch(len(taken), task.num_samples), features, labels)
        if on_gpu:
            torch.cuda.synchronize(host.device)
        taken.append(clock() - begun_s)
        leaving.append(work.features)
    # A worker builds the network, too, but what enters it lies in the object store.
    grown_bytes = host.peak_memory_bytes() - before_bytes - (0 if on_gpu else num_bytes(features))
    return Rehearsed(step_s=statistics.median(taken[WARM_UP:]), memory_bytes=grown_bytes)
