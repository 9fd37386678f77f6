"""A plan's stages for some steps, all at once, as workers will run them: what they take of this machine together.

Sums over blocks leave out what stages take from each other (caches, memory bandwidth), what a step has beside its
blocks, and what an allocator keeps between tensors. So the layouts that look best are tried, on random inputs and
without Ray. On a CPU a step's seconds are the processor's: whatever else the machine does at the moment, and how many
stages take turns on its cores, is not the stage's doing. Replicas exchange their gradients here, too, and wait for each
other: theirs are the clock's.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from threading import BrokenBarrierError

from distblock.config import Config
from distblock.errors import PeerLostError, RunFailedError
from distblock.learning.allocator import children_keep_memory
from distblock.learning.blueprint import Build, Problem, draw_blueprint
from distblock.learning.host import HostSpec
from distblock.learning.replicas import PeersGoneError
from distblock.planning.layout import Rehearsed
from distblock.planning.processes import ended_is_told
from distblock.planning.stage_trial import Meeting, Peers, Task, meet_at, perform

STEPS_PER_EPOCH = 1000
"""For the learning rate alone, which is of no account here."""


def rehearse(
    config: Config,
    problem: Problem,
    *,
    nodes: Sequence[str],
    cores: int,
    build: Build | None = None,
    peers: Callable[..., Peers] | None = None,
) -> tuple[Rehearsed, ...]:
    """Run each stage of a partition in processes of its own.

    Args:
        config: the settings, the partition in them.
        problem: what the network is built for.
        nodes: of each stage's worker: those of one node run at the same time.
        cores: of a node; no more run at once: what their taking turns costs depends on who waits for whom, which is
            not so here.
        build: the user's own network.
        peers: makes a process one of a stage's replicas; without it, and where a stage's do not fit on the cores at
            once, nobody exchanges gradients.

    Raises:
        RunFailedError: a process was ended from outside.
    """
    most = _at_once(config, cores)
    # On a GPU that several share they could not meet: NCCL wants one for each.
    if config.replicas == 1 or most < config.replicas or config.resources.gpus_per_worker:
        peers = None
    else:
        most -= most % config.replicas
    tasks = _tasks(config, problem, build, peers)
    found: dict[int, list[Rehearsed]] = {task.stage: [] for task in tasks}
    for node in dict.fromkeys(nodes):
        own = [task for task in tasks if nodes[task.stage] == node]
        for wave in _waves([replace(task, replica=each) for task in own for each in range(config.replicas)], most):
            for task, result in zip(wave, _together(wave), strict=True):
                found[task.stage].append(result)
    return tuple(_mean(found[stage]) for stage in sorted(found))


def _tasks(config: Config, problem: Problem, build: Build | None, peers: Callable[..., Peers] | None) -> list[Task]:
    """One a stage."""
    # A process computes a share, whoever computes the others.
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
    share = max(1, config.data.train_microbatch // config.replicas)
    return [
        Task(spec=replace(whole, stages=range(stage, stage + 1)), num_samples=share, peers=peers, count=config.replicas)
        for stage in whole.stages
    ]


def _waves(every: Sequence[Task], most: int) -> Iterator[Sequence[Task]]:
    """Those that run at once, so many or, if there are not so many, all; the last wave is filled up from the first:
    there, too, none has the memory bandwidth to itself."""
    filled = [*every, *(every[: -len(every) % most] if len(every) > most else [])]
    for start in range(0, len(filled), most):
        yield filled[start : start + most]


def _at_once(config: Config, cores: int) -> int:
    """Processes: as will compute at once on a node, and as this machine can; on GPUs, those that share one."""
    resources = config.resources
    if resources.gpus_per_worker:
        return max(1, int(1 / resources.gpus_per_worker))
    return max(1, min(cores, len(os.sched_getaffinity(0)) // resources.threads_per_worker))


def _mean(results: Sequence[Rehearsed]) -> Rehearsed:
    return Rehearsed(
        step_s=statistics.mean(result.step_s for result in results),
        undisturbed_s=min(result.undisturbed_s for result in results),
        memory_bytes=max(result.memory_bytes for result in results),
    )


def _together(tasks: Sequence[Task]) -> list[Rehearsed]:
    context = get_context("spawn")
    meeting = Meeting(
        ready=context.Barrier(len(tasks)), addresses={task.stage: context.SimpleQueue() for task in tasks}
    )
    with (
        children_keep_memory(),
        ProcessPoolExecutor(
            len(tasks),
            mp_context=context,
            initializer=meet_at,
            initargs=(meeting,),
        ) as pool,
    ):
        futures = [pool.submit(perform, task) for task in tasks]
        errors = [error for future in futures if (error := future.exception()) is not None]
    # Those that waited for another one are no cause.
    causes = [error for error in errors if not isinstance(error, BrokenBarrierError | PeerLostError | PeersGoneError)]
    if causes:
        with ended_is_told("tried a stage"):
            raise causes[0]
    if errors:
        raise RunFailedError(
            "plan: the processes that tried its stages did not find each other in time; try again with less beside them"
        )
    return [future.result() for future in futures]
