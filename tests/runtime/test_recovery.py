"""Workers that die or freeze at exact moments: the run ends with the weights of the undisturbed one.

The oracle is the plain loop, in which nothing fails.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from disturbed import check, run, undisturbed
from further import further
from ray.exceptions import RayTaskError

from distblock import BlockTrainer
from distblock.config import make_config
from distblock.errors import DeviceLostError, WorkerLostError
from distblock.messages import Item, Parcel
from distblock.preparation import make_course, make_job, prepare
from distblock.runtime import driver
from distblock.runtime.cluster import placed
from distblock.runtime.crew import start_worker
from distblock.runtime.faults import Fault, FaultKind, fail_at
from distblock.runtime.handover import Beginning
from distblock.runtime.probe import random_payload

pytestmark = pytest.mark.usefixtures("shared_ray")

SMALL: dict[str, Any] = {"data": {"batch_size": 96, "fraction": 0.5}}
REGIMES: dict[str, dict[str, Any]] = {
    "parallel": {"regime": {"name": "parallel", "epochs": 3}},
    "sequential": {"regime": {"name": "sequential", "epochs": 1}},
    "wavefront-cache": {"regime": {"name": "wavefront", "epochs": 1, "laps": 3, "inputs": "cache"}},
    "wavefront-frozen": {"regime": {"name": "wavefront", "epochs": 1, "laps": 3, "inputs": "frozen"}},
    "two-workers": {
        "regime": {"name": "multi-lap", "epochs": 1, "laps": 2, "inputs": "cache"},
        "resources": {"workers": 2},
    },
    "microbatches": {
        "regime": {"name": "parallel", "epochs": 2},
        "data": {"batch_size": 96, "microbatch_size": 32, "fraction": 0.5, "augment": ["crop", "flip"]},
        "objective": {"multiplier_step": 1.0, "multiplier_every": 2},
        "optimizer": {"name": "adam", "lr": 0.001},
    },
}


def values(regime: str, **changes: Any) -> dict[str, Any]:
    # A small budget, so that snapshots are taken all along; a microbatch a call, so that calls are there to fail at.
    few = {"recovery": {"kept_bytes": 300_000}, "channel": {"microbatches_per_call": 1}}
    return {**SMALL, **few, **REGIMES[regime], **changes}


@pytest.mark.parametrize(
    ("regime", "worker", "turn", "moment"),
    [
        ("parallel", 0, 5, "before"),
        further("wavefront-cache", 1, 9, "computed"),
        further("two-workers", 1, 12, "before"),
    ],
)
def test_a_worker_that_is_killed_is_replaced_alone(regime: str, worker: int, turn: int, moment: Any):
    [failure] = check(values(regime), Fault(worker=worker, turn=turn, moment=moment))
    assert failure.kind == "worker_died"
    assert failure.who.startswith(f"worker {worker} (stages")
    assert failure.held_up_s > 0


@pytest.mark.further
@pytest.mark.parametrize("regime", ["microbatches", "sequential", "wavefront-frozen"])
def test_random_faults(regime: str):
    draw = random.Random(regime)
    workers = REGIMES[regime].get("resources", {}).get("workers", 3)
    faults = [
        Fault(
            worker=worker,
            turn=draw.randrange(1, 14),
            kind=draw.choice(["kill", "segfault", "device"]),
            moment=draw.choice(["before", "computed", "stored"]),
        )
        for worker in draw.sample(range(workers), min(workers, 3))
    ]
    check(values(regime), *faults)


@pytest.mark.parametrize("kind", ["freeze", further("hang")])
def test_a_worker_that_freezes_is_replaced(kind: FaultKind):
    config = values("parallel")
    config["recovery"] = {**config["recovery"], "deadline_s": 3.0}
    # Whoever waits for it over a connection is not taken for frozen, too.
    config["channel"] = {**config["channel"], "transport": "worker"}
    [failure] = check(config, Fault(worker=1, turn=8, kind=kind))
    assert failure.kind == "worker_froze"
    assert "no result for" in failure.cause


def test_a_worker_whose_device_fails_is_replaced():
    [failure] = check(values("parallel"), fail_at(2, 1, 2, "device"))
    assert failure.kind == "worker_lost_device"
    assert failure.place == "epoch 2, training microbatch 2"


def test_one_worker_again_and_again():
    faults = [Fault(worker=1, turn=turn, process=process) for process, turn in enumerate((4, 9, 9, 14))]
    failures = check(values("parallel"), *faults)
    assert {failure.who for failure in failures} == {"worker 1 (stages 1 to 1)"}


@pytest.mark.parametrize("regime", ["parallel", further("wavefront-cache")])
def test_everything_back_to_the_last_checkpoint(regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What other trainers do, and what a node's death takes: here for a worker's."""
    faults = (
        Fault(worker=1, turn=12),
        # The last worker has something left, whatever checkpoint the run goes back to.
        Fault(worker=2, turn=2, attempt=1, kind="device"),
        Fault(worker=2, turn=3, attempt=2),
    )

    def job_with_faults(*arguments: Any, **keywords: Any) -> driver.Job:
        return replace(make_job(*arguments, **keywords), faults=faults)

    monkeypatch.setattr("distblock.training.make_job", job_with_faults)
    config = values(regime, checkpoint={"every_microbatches": 3}, run_dir=str(tmp_path / "run"))
    config["recovery"] = {**config["recovery"], "scope": "run"}
    summary = BlockTrainer(config).fit().metrics
    assert summary is not None
    expected, alone = undisturbed(values(regime))
    assert [stage["weights_sha256"] for stage in summary["stages"]] == expected
    kinds = [failure["kind"] for failure in summary["failures"]]
    assert kinds == ["worker_died", "worker_lost_device", "worker_died"]
    assert all(failure["place"].startswith(("checkpoint", "the beginning")) for failure in summary["failures"])
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()
    assert [(row["train_loss"], row["num_samples"]) for row in rows] == [
        (row.train_loss, row.num_samples) for row in alone.rows()
    ]


@pytest.mark.parametrize("regime", ["wavefront-cache", further("microbatches")])
def test_a_worker_that_dies_in_the_middle_of_a_parcel_is_replaced_alone(regime: str):
    config = values(regime, channel={"microbatches_per_call": 3})
    [failure] = check(config, fail_at(1, 1, 4, "kill"))
    assert failure.kind == "worker_died"


def test_a_data_worker_that_dies_is_replaced():
    [failure] = check(values("parallel"), Fault(worker=3, turn=4, moment="before"))
    assert (failure.kind, failure.who) == ("data_worker_died", "data worker 0")


def test_a_microbatch_in_the_middle_of_a_parcel_that_fails_is_named():
    parcel = Parcel(tuple(first_items(3)))
    [error] = told([parcel], Fault(stage=0, epoch=0, index=1, kind="device", moment="before"))
    assert str(parcel.items[1]) in str(error)
    assert str(parcel.items[0]) not in str(error)


def test_nothing_is_computed_behind_a_microbatch_that_failed():
    """What is queued behind it lacks its step, and its result might be told before the failure is."""
    parcels = [Parcel((item,)) for item in first_items(6)]
    # Slow enough for all to be queued before the first is done.
    errors = told(parcels, Fault(worker=0, turn=2, kind="device", moment="before"), delay_s=0.5)
    assert [type(error) for error in errors[:2]] == [type(None)] * 2
    assert all(isinstance(error, RayTaskError) and isinstance(error.cause, DeviceLostError) for error in errors[2:])


def first_items(count: int) -> list[Item]:
    items = make_course(prepare(make_config(values("parallel")))).begin()[0].items
    return [item for item in itertools.islice(items, count) if item is not None]


def told(parcels: Sequence[Parcel], fault: Fault, *, delay_s: float = 0.0) -> list[BaseException | None]:
    """What the first stage's worker makes of parcels by itself, given all at once: each one's failure."""
    [spec, *_] = make_job(prepare(make_config(values("parallel"))), run="queued").hosts
    with placed([{"CPU": 1.0}], strategy="PACK", note=print) as group:
        beginning = Beginning(faults=(fault,))
        worker = start_worker(
            replace(spec, delays_s={0: delay_s}), 0, group, bundle=0, beginning=beginning, jemalloc=None
        )
        entering = [ray.put(tuple(random_payload(spec, item) for item in parcel.items)) for parcel in parcels]
        reports = [
            worker.hop.options(num_returns=2).remote(parcel, [payloads], turn)[1]
            for turn, (parcel, payloads) in enumerate(zip(parcels, entering, strict=True))
        ]
        errors = [future.exception() for future in [report.future() for report in reports] if wait([future])]
        ray.kill(worker)
    return errors


def test_what_kills_everyone_at_the_same_place_ends_the_run():
    # Its fifth call may be a snapshot: when one is due depends on who is quicker.
    said = r"worker 1 \(stages 1 to 1\), (epoch 1, |snapshot: ).*3rd time at the same place"
    with pytest.raises(WorkerLostError, match=said):
        run(values("parallel"), Fault(worker=1, turn=4, process=None))


def test_a_limit_of_failures():
    config = values("parallel")
    config["recovery"] = {**config["recovery"], "max_failures": 0}
    with pytest.raises(WorkerLostError, match=r"failure 1, and recovery\.max_failures is 0"):
        run(config, Fault(worker=2, turn=4))
