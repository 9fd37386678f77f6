"""distblock's own samples per second: of workers together, of their bound, and of the plain loop.

The bound is what the slowest worker's own computing allows: samples over the seconds it computed, taken twice, in the
pipeline's run itself and with that worker's stages alone on the machine. What is missing to the first is waiting:
fetching, dispatching, credits. What is missing to the second is also what the workers take from each other: caches,
memory bandwidth, and the cores that the driver and the data worker use.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from distblock import local
from distblock.config import make_config
from distblock.errors import RunFailedError
from distblock.learning.allocator import jemalloc_here, keeping_memory
from distblock.learning.host import HostSpec
from distblock.messages import Item, WorkerReport
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.probe import run_alone
from distblock.schedule.course import AllAtOnce
from distblock.schedule.stream import stream

WARM_UP = 8
"""First microbatches that do not count: the pipeline fills, kernels are chosen, and images are decoded."""

TRAINING_SAMPLES = 45_000
"""CIFAR-10's, without the validation part."""

Kind = Literal["workers", "plain-loop"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        data_path: folder with CIFAR-10 as Parquet.
        stages, workers: the workers host consecutive stages.
        microbatches: that count.
        codec: of what crosses from worker to worker.
        first_epoch: whether images are still to be decoded.
        alone: whether each worker is measured with nobody beside it, too.
        address: a Ray cluster; none: an embedded Ray.
        run_dir: storage that all its nodes see; nothing is kept there.
        cpus_per_worker, gpus_per_worker: what Ray reserves; above 0 GPUs the stages live on a GPU.
        cuts: first blocks of stages, instead of as many balanced ones.
        replicas: workers that share each stage.
    """

    data_path: str
    model: str
    stages: int
    workers: int
    batch_size: int
    microbatches: int
    codec: str = "fp32"
    augment: bool = False
    first_epoch: bool = False
    alone: bool = True
    address: str | None = None
    run_dir: str | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    cuts: tuple[int, ...] | None = None
    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Samples per second of one run.

    Attributes:
        pipeline: of the workers together, from the end of the warm-up to the end of the last microbatch, at the slowest
            worker, or at the last if that takes longer.
        bound: of the slowest worker's own computing, in that run.
        bound_alone: of the slowest worker's stages with nobody beside it; None where it was not measured.
        wire_bytes_per_sample: that leave the first worker, its labels included; 0 where it is the only one.
        nodes: where the data and each worker were.
        peak_memory_bytes: of each worker's process, or on its device.
    """

    pipeline: float
    bound: float
    bound_alone: float | None
    wire_bytes_per_sample: float
    nodes: tuple[str, ...]
    peak_memory_bytes: tuple[int, ...] = ()


class _Reports(Silent):
    """Keeps every worker report, and where the data were."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self.data_node = ""

    def record(self, report: WorkerReport) -> None:
        self.reports.append(report)

    def record_departure(self, departure: Any, node: str, item: Item) -> None:  # noqa: ARG002
        self.data_node = node


def prepare_run(settings: Settings) -> Prepared:
    """The data, opened, and the network, cut.

    Raises:
        InputError: something that was given cannot be used.
    """
    # Decoded images stay in memory, so that all epochs but the first are alike; a short epoch comes to its end in the
    # warm-up.
    share = 1.0 if settings.first_epoch else min(1.0, WARM_UP * settings.batch_size / TRAINING_SAMPLES)
    values: dict[str, Any] = {
        "address": settings.address,
        "data": {
            "name": "parquet",
            "path": settings.data_path,
            "batch_size": settings.batch_size,
            "fraction": share,
            "augment": ["crop", "flip"] if settings.augment else [],
        },
        "model": {"name": settings.model, **_cut(settings)},
        "replicas": settings.replicas,
        "channel": {"codec": settings.codec},
        "regime": {"epochs": settings.microbatches + WARM_UP},
        "resources": {
            "workers": settings.workers,
            "cpus_per_worker": settings.cpus_per_worker,
            "gpus_per_worker": settings.gpus_per_worker,
        },
    }
    if settings.run_dir is not None:
        values["run_dir"] = settings.run_dir
    return prepare(make_config(values))


def _cut(settings: Settings) -> dict[str, Any]:
    return {"stages": settings.stages} if settings.cuts is None else {"cuts": list(settings.cuts)}


def make_items(settings: Settings, prepared: Prepared) -> Iterator[Item]:
    """The microbatches, those of the warm-up first."""
    return training_items(prepared, settings.microbatches + WARM_UP)


def training_items(prepared: Prepared, count: int) -> Iterator[Item]:
    """A run's first training microbatches, without what it evaluates between them."""
    training = (item for item in stream(prepared.plan) if item and item.purpose == "train")
    return (replace(item, number=number) for number, item in enumerate(itertools.islice(training, count)))


def measure_workers(settings: Settings) -> Rates:
    """The workers together, then each worker's stages alone."""
    prepared = prepare_run(settings)
    job = make_job(prepared, run="bench")
    observer = _Reports()
    driver.execute(job, AllAtOnce(lambda _: make_items(settings, prepared)), observer, note=_note)
    alone = [_alone(spec, settings, prepared) for spec in job.hosts] if settings.alone else []
    processes = range(len(job.hosts) * settings.replicas)
    by_worker = [[report for report in observer.reports if report.worker == n] for n in processes]
    return _rates(by_worker, min(alone, default=None), observer.data_node, replicas=settings.replicas)


def measure_plain_loop(settings: Settings) -> Rates:
    """All stages in this process, by one thread, data included."""
    prepared = prepare_run(settings)
    observer = _Reports()
    course = AllAtOnce(lambda _: make_items(settings, prepared))
    local.execute(whole_spec(prepared), prepared.data, course, observer, initial={})
    return _rates([observer.reports], None, observer.data_node)


def whole_spec(prepared: Prepared) -> HostSpec:
    """All stages in one process."""
    whole = replace(prepared.blueprint, hosts=(range(prepared.blueprint.num_stages),))
    [host] = make_job(replace(prepared, blueprint=whole), run="bench").hosts
    return host


MEASURES: dict[str, Callable[[Settings], Rates]] = {"workers": measure_workers, "plain-loop": measure_plain_loop}


def measure_apart(kind: Kind, settings: Settings, *, run: Callable[..., Any] = subprocess.run, **options: Any) -> Rates:
    """The same in a process of its own: the plain loop needs the workers' memory settings, and a driver on another host
    is another process anyhow.

    Args:
        kind: what is measured.
        settings: how.
        run: like ``subprocess.run``: here, or on another host.
        options: for it.

    Raises:
        RunFailedError: it failed; the message has its last words.
    """
    command = [sys.executable, "-m", "distblock.bench.apart", kind, json.dumps(asdict(settings))]
    # Workers are given theirs.
    keeping = keeping_memory(jemalloc_here()) if kind == "plain-loop" else {}
    options = {"env": {**os.environ, **keeping}, "capture_output": True, "text": True, **options}
    try:
        done = run(command, **options)
    except subprocess.TimeoutExpired as error:
        raise RunFailedError(f"bench pipeline: {kind}: expected an end within {error.timeout:g} s, got none") from None
    if done.returncode:
        raise RunFailedError(f"bench pipeline: {kind} failed: {done.stderr[-500:]}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    tuples = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Rates(**{**values, **tuples})


def _rates(
    by_worker: Sequence[Sequence[WorkerReport]], alone: float | None, data_node: str, *, replicas: int = 1
) -> Rates:
    computing = [sum(r.finished_s - r.started_s for r in worker[WARM_UP:]) for worker in by_worker]
    # The slowest worker sets the pace; seen from there, the pipeline's filling and draining fall outside the window.
    # Where a link is slower than all of them, the pace is the last one's: what is still on its way does not count.
    slowest = by_worker[computing.index(max(computing))]
    samples = sum(report.item.num_samples for report in slowest[WARM_UP:])
    seconds = max(worker[-1].finished_s - worker[WARM_UP - 1].finished_s for worker in (slowest, by_worker[-1]))
    leaving = sum(departure.wire_bytes for report in by_worker[0] for departure in report.departures)
    return Rates(
        # Each replica has its share of every microbatch.
        pipeline=replicas * samples / seconds,
        bound=replicas * samples / max(computing),
        bound_alone=alone,
        wire_bytes_per_sample=leaving / sum(report.item.num_samples for report in by_worker[0]),
        nodes=(data_node, *(worker[0].node for worker in by_worker)),
        peak_memory_bytes=tuple(worker[-1].peak_memory_bytes for worker in by_worker),
    )


def _alone(spec: HostSpec, settings: Settings, prepared: Prepared) -> float:
    """Samples per second of one worker's own computing with no other worker beside it."""
    counted = run_alone(spec, list(make_items(settings, prepared)))[WARM_UP:]
    samples = sum(report.item.num_samples for report in counted)
    return samples / sum(report.finished_s - report.started_s for report in counted)


def _note(text: str) -> None:
    print(text, file=sys.stderr)
