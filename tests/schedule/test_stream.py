"""The stream, against lists written out by hand."""

from __future__ import annotations

from typing import Any

from distblock.messages import Item
from distblock.schedule.stream import StreamPlan, pieces, stream


def plan(**changes: int) -> StreamPlan:
    numbers = {
        "num_train": 100,
        "num_validation": 40,
        "num_test": 20,
        "batch_size": 48,
        "microbatch_size": 16,
        "eval_microbatch_size": 20,
        "epochs": 2,
    }
    return StreamPlan(**{**numbers, **changes})


def whole_stream(plan: StreamPlan, **options: Any) -> list[Item]:
    """A stream that never has to wait."""
    return [item for item in stream(plan, **options) if item is not None]


def test_pieces_by_hand():
    assert pieces(96, 32) == [32, 32, 32]
    assert pieces(112, 32) == [32, 32, 32, 16]  # 16 may stand alone
    assert pieces(111, 32) == [32, 32, 47]  # 15 join their predecessor
    assert pieces(5, 32) == [5]  # nobody to join
    assert pieces(21, 8) == [8, 13]


def test_the_whole_order_by_hand():
    # 100 samples in batches of 48: 48 and 52 (a tail of 4 joins), in microbatches of 16: 3 x 16, and 16 + 16 + 20.
    train = ["train 0 16", "train 16 16", "train 32 16 step", "train 48 16", "train 64 16", "train 80 20 step end"]
    validation = ["validation 0 20 step", "validation 20 20 step end"]
    test = ["test 0 20 step end"]
    assert [
        f"{item.part} {item.first_sample} {item.num_samples}"
        f"{' step' if item.closes_batch else ''}{' end' if item.closes_pass else ''}"
        for item in whole_stream(plan())
    ] == [*train, *validation, *train, *validation, *test]


def test_numbers_have_no_gaps_and_batches_know_their_size():
    items = list(whole_stream(plan()))
    assert [item.number for item in items] == list(range(len(items)))
    assert [item.batch_samples for item in items if item.epoch == 0 and item.part == "train"] == [48] * 3 + [52] * 3


def test_evaluation_every_second_epoch_and_always_after_the_last():
    items = whole_stream(plan(epochs=5, evaluate_every=2))
    assert sorted({item.epoch for item in items if item.part == "validation"}) == [1, 3, 4]


def test_out_of_time_ends_training_before_a_batch_and_still_evaluates():
    asked = iter([False, False, True])
    items = list(whole_stream(plan(num_train=480, epochs=3), out_of_time=lambda: next(asked, True)))
    # The first batch of an epoch always runs; two more were allowed, the fourth was not: 3 batches of 3 microbatches.
    assert [item.part for item in items] == ["train"] * 9 + ["validation"] * 2 + ["test"]
    assert items[8].closes_batch
