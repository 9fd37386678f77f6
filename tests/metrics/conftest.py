"""A made-up run: three stages on two workers (0 and 1, then 2) on two nodes, with random figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from distblock.messages import Arrival, Departure, Item, StageReport, WorkerReport
from distblock.schedule.stream import StreamPlan, stream

WORKERS = ((0, 1), (2,))
NODES = ("10.0.0.1", "10.0.0.2")
LAG = 3
"""Microbatches that worker 0 is ahead of worker 1."""


@dataclass(frozen=True, kw_only=True)
class MadeUpRun:
    """What an executor would tell: reports as they come in, and the data's departures."""

    items: list[Item]
    reports: list[WorkerReport]
    departures: list[Departure]


@pytest.fixture
def make_run() -> Callable[..., MadeUpRun]:
    """``make_run(batches=n)`` ends training, as the time limit does, before batch n + 1."""
    return _make_run


@pytest.fixture
def run() -> MadeUpRun:
    return _make_run()


def _make_run(batches: int | None = None) -> MadeUpRun:
    plan = StreamPlan(
        num_train=112,
        num_validation=40,
        num_test=20,
        batch_size=32,
        microbatch_size=16,
        eval_microbatch_size=20,
        epochs=3,
    )
    begun = [0]

    def out_of_time() -> bool:
        begun[0] += 1
        return batches is not None and begun[0] >= batches

    items = [item for item in stream(plan, out_of_time=out_of_time) if item is not None]
    random = Random(7)
    workers = [[_report(worker, item, random) for item in items] for worker in range(len(WORKERS))]
    reports = []
    for turn in range(len(items) + LAG):
        reports += workers[0][turn : turn + 1]
        reports += workers[1][turn - LAG : turn - LAG + 1] if turn >= LAG else []
    return MadeUpRun(items=items, reports=reports, departures=[_departure(0, item, random) for item in items])


def _report(worker: int, item: Item, random: Random) -> WorkerReport:
    stages = WORKERS[worker]
    fetch_s, decode_s, exposed_s, in_turn_s = (random.random() for _ in range(4))
    arrival = Arrival(
        edge=stages[0],
        fetch_s=fetch_s,
        decode_s=decode_s,
        exposed_s=exposed_s,
        in_turn_s=in_turn_s,
        past_store=worker > 0,
    )
    within = Arrival(edge=1, fetch_s=0.0, decode_s=0.0, exposed_s=0.0)
    return WorkerReport(
        worker=worker,
        item=item,
        stages=tuple(_stage_report(stage, item, random) for stage in stages),
        arrivals=(arrival, within) if worker == 0 else (arrival,),
        departures=(_departure(1, item, random), _departure(2, item, random)) if worker == 0 else (),
        started_s=0.0,
        finished_s=1.0,
        idle_s=random.random(),
        peak_memory_bytes=random.randrange(10**9),
        node=NODES[worker],
        reused=(item.number - 1,) if worker == 1 and item.purpose == "train" and item.index == 1 else (),
        reuse_s=0.0,
    )


def _stage_report(stage: int, item: Item, random: Random) -> StageReport:
    return StageReport(
        stage=stage,
        role=item.role(stage),
        loss_sum=random.uniform(0, 3) * item.num_samples,
        transport_cost_sum=random.random() * item.num_samples,
        num_correct=random.randrange(item.num_samples + 1),
        num_samples=item.num_samples,
        compute_s=random.random(),
        lr=random.random() if item.purpose == "train" else None,
        multiplier=random.random() if item.purpose == "train" else None,
    )


def _departure(edge: int, item: Item, random: Random) -> Departure:
    num_bytes = 4096 * item.num_samples + random.randrange(100)
    within = edge == 1
    return Departure(
        edge=edge,
        payload_bytes=num_bytes,
        wire_bytes=0 if within else num_bytes // 2,
        encode_s=random.random(),
        put_s=0.0 if within else random.random(),
        in_turn_s=random.random() if edge else 0.0,
    )
