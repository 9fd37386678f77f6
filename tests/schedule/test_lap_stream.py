"""A stage's stream in one lap, against lists written out by hand; and early stopping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distblock.messages import Item
from distblock.schedule.laps import Cell
from distblock.schedule.stopping import Patience
from distblock.schedule.stream import StreamPlan, lap_stream, stream

PLAN = StreamPlan(
    num_train=96,
    num_validation=40,
    num_test=20,
    batch_size=48,
    microbatch_size=48,
    eval_microbatch_size=40,
    epochs=1,
)


def drawn(cell: Cell, **options: Any) -> list[str]:
    items = lap_stream(PLAN, cell, **{"epochs": 2, "last_lap": False, "stores": False, **options})
    return [f"{i.purpose} {i.part} {i.epoch} {i.num_samples}" if i else "wait" for i in items]


def test_a_lap_by_hand():
    # Lap 1 of 2 epochs each: epochs 2 and 3. What is stored comes in pieces of the training size.
    assert drawn(Cell(lap=1, stage=0), stores=True) == [
        "train train 2 48",
        "train train 2 48",
        "evaluate validation 2 40",
        "train train 3 48",
        "train train 3 48",
        "evaluate validation 3 40",
        "store train 3 48",
        "store train 3 48",
        "store validation 3 40",
    ]


def test_the_last_lap_measures_on_the_test_part_too():
    assert drawn(Cell(lap=0, stage=1), epochs=1, last_lap=True, stores=True)[3:] == [
        "evaluate test 0 20",
        "store train 0 48",
        "store train 0 48",
        "store validation 0 40",
        "store test 0 20",
    ]


def test_items_know_their_stage_and_lap_and_are_numbered_without_gaps():
    items = [i for i in lap_stream(PLAN, Cell(lap=3, stage=2), epochs=1, last_lap=True, stores=True) if i]
    assert [i.number for i in items] == list(range(8))
    assert {(i.stage, i.lap) for i in items} == {(2, 3)}
    assert [items[0].role(stage) for stage in (1, 2)] == ["forward", "train"]
    assert items[-1].role(2) == "forward"


def test_out_of_time_a_lap_trains_no_more_and_only_the_last_one_measures():
    def late() -> bool:
        return True

    assert drawn(Cell(lap=1, stage=0), out_of_time=late, stores=True) == []
    assert drawn(Cell(lap=1, stage=0), out_of_time=late, stores=False, last_lap=True) == [
        "evaluate validation 2 40",
        "evaluate test 2 20",
    ]
    # The very first batch is trained in any case.
    assert drawn(Cell(lap=0, stage=0), out_of_time=late, last_lap=True)[0] == "train train 0 48"


def told(patience: Patience, accuracies: list[float]) -> None:
    for epoch, accuracy in enumerate(accuracies):
        patience.tell(0, 0, epoch, accuracy)


def test_patience_by_hand():
    patience = Patience(2)
    told(patience, [0.5, 0.6, 0.6, 0.7, 0.7, 0.65])
    # 0.6 again is no rise; 0.7 is; then two evaluations without one.
    assert [patience.has_stopped(0, 0, epoch) for epoch in range(6)] == [False] * 5 + [True]
    assert not patience.has_stopped(0, 1, 5)
    assert not Patience(None).has_stopped(0, 0, 5)


def test_a_lap_waits_for_its_evaluation_and_stops_when_patience_is_lost():
    patience = Patience(1)
    items = lap_stream(PLAN, Cell(lap=0, stage=0), epochs=9, last_lap=False, stores=False, patience=patience)
    for _ in range(3):
        assert next(items) is not None
    assert next(items) is None
    assert next(items) is None
    patience.tell(0, 0, 0, 0.5)
    for _ in range(3):
        assert next(items) is not None
    patience.tell(0, 0, 1, 0.5)
    assert list(items) == []


def parallel(tell: Callable[[Patience, Item], None]) -> list[Item | None]:
    plan = StreamPlan(**{**_fields(PLAN), "epochs": 6})
    patience = Patience(1)
    items = []
    for item in stream(plan, patience=patience, num_stages=2):
        items.append(item)
        if item is not None and item.part == "validation":
            tell(patience, item)
    return items


def _fields(plan: StreamPlan) -> dict[str, int]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def test_in_the_parallel_regime_a_stage_stops_one_epoch_after_its_verdict():
    def tell(patience: Patience, item: Item) -> None:
        patience.tell(0, 0, item.epoch, 0.5)
        patience.tell(1, 0, item.epoch, 0.5 + 0.01 * item.epoch)

    items = [item for item in parallel(tell) if item is not None and item.purpose == "train"]
    # Stage 0 does not rise in epoch 1; epoch 2 begins before that has to be known.
    assert [item.stopped for item in items[::2]] == [(), (), (), (0,), (0,), (0,)]
    assert items[-1].role(0) == "forward"
    assert items[-1].role(1) == "train"


def test_the_run_ends_when_all_stages_have_stopped():
    def tell(patience: Patience, item: Item) -> None:
        for stage in (0, 1):
            patience.tell(stage, 0, item.epoch, 0.5)

    items = [item for item in parallel(tell) if item is not None]
    assert max(item.epoch for item in items) == 2
    assert [f"{item.part} {item.epoch}" for item in items[-2:]] == ["validation 2", "test 2"]
