"""How many microbatches go together, and where a parcel ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from microbatches import microbatches

from distblock.config import make_config
from distblock.messages import Item
from distblock.schedule.credits import Limit
from distblock.schedule.dispatch import Dispatcher
from distblock.schedule.parcels import LARGEST, ParcelSize, parcel_size, parcels


def numbers(stream: Iterator[Item | None], count: int) -> list[list[int] | None]:
    return [parcel and [item.number for item in parcel.items] for parcel in parcels(stream, lambda: count)]


def test_a_parcel_ends_with_its_pass_and_with_the_stream():
    assert numbers(iter(microbatches(7, pass_length=5)), 2) == [[0, 1], [2, 3], [4], [5, 6]]
    assert numbers(iter(microbatches(3)), 2) == [[0, 1], [2]]


def test_what_is_there_goes_where_the_stream_has_to_wait():
    first, second, third = microbatches(3)
    assert numbers(iter([first, second, None, None, third]), 4) == [[0, 1], None, [2]]


def test_quick_microbatches_go_together_and_slow_ones_alone():
    size = ParcelSize(None)
    assert size.count == 1  # nothing is known
    for _ in range(100):
        size.tell(0, 0.0005)
        size.tell(1, 0.04)
    assert size.count == 5  # the slowest worker's 40 ms, in 0.2 s
    size.tell(2, 2.0)
    assert size.count == 1


def test_a_parcel_is_bounded():
    size = ParcelSize(None)
    size.tell(0, 1e-6)
    assert size.count == LARGEST
    size = ParcelSize(None, largest=0)  # not even one is within the bytes: one always passes
    size.tell(0, 1e-6)
    assert size.count == 1
    assert ParcelSize(40).count == 40


def test_there_is_room_for_as_many_parcels_as_may_be_in_flight():
    """What a slow line carries in time bounds them, too: one too large would not be there before Ray asks again."""
    config = make_config({"data": {"batch_size": 10}})
    wide, narrow = Limit(count=4, num_bytes=2**30), Limit(count=4, num_bytes=100_000)
    assert counted(parcel_size(config, [(1_000, wide), (100, wide)])) == LARGEST
    assert counted(parcel_size(config, [(1_000, wide), (500, narrow)])) == 5
    assert counted(parcel_size(config, [(1_000_000, narrow)])) == 1
    ready = replace(narrow, count=64)  # of many data workers
    assert counted(parcel_size(config, [(500, ready)])) == 5


def test_room_is_for_what_crosses():
    narrow = Limit(count=4, num_bytes=100_000)
    pieces = make_config({"data": {"batch_size": 1000, "microbatch_size": 10}})
    assert counted(parcel_size(pieces, [(500, narrow)])) == 5
    evaluated = make_config({"data": {"batch_size": 10, "eval_batch_size": 25}})
    assert counted(parcel_size(evaluated, [(500, narrow)])) == 2


def test_checkpoints_come_as_often_as_they_are_asked_for():
    assert counted(parcel_size(make_config({"checkpoint": {"every_microbatches": 3}}), ())) == 3


def test_none_is_dropped_with_others():
    assert counted(parcel_size(make_config({"regime": {"name": "asynchronous"}}), ())) == 1


def counted(size: ParcelSize) -> int:
    """Of microbatches that take no time."""
    size.tell(0, 1e-6)
    return size.count


@pytest.mark.parametrize("count", [1, 3])
def test_places_count_microbatches(count: int):
    dispatcher = Dispatcher(parcels(iter(microbatches(7)), lambda: count), edges=[], size=lambda edge, parcel: 1)
    begun: list[int] = []
    while not dispatcher.is_finished:
        for dispatch in dispatcher.begin(0.0):
            begun += [item.number for item in dispatch.parcel.items]
            dispatcher.finish(dispatch.place, dispatch.parcel)
    assert begun == list(range(7))
    assert dispatcher.begun(0) == 7
    assert dispatcher.has_passed(0, 7)
