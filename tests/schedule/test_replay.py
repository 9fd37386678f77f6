"""Oracle: staircases drawn by hand, and sums of what the slowest part takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from microbatches import microbatches

from distblock.messages import Parcel
from distblock.schedule.credits import Limit
from distblock.schedule.replay import Call, Pipeline, replay

COUNT = 8
NOTHING = Call(send_s=0.0, fetch_s=0.0, compute_s=0.0, store_s=0.0, reply_s=0.0)


def pipeline(*calls: Call, in_flight: int = 4, **changes: Any) -> Pipeline:
    """The data's calls, then each worker's."""
    return Pipeline(
        parcels=[Parcel((item,)) for item in microbatches(COUNT)],
        call=lambda place, parcel: calls[place],
        limits=[Limit(count=in_flight, num_bytes=10**9)] * (len(calls) - 1),
        **changes,
    )


def computing(*seconds: float) -> list[Call]:
    return [replace(NOTHING, compute_s=each) for each in seconds]


def test_equal_stages_make_a_staircase():
    told = replay(pipeline(*computing(0, 1, 1, 1)))
    starts = [[span.started_s for span in told.spans if span.place == place] for place in (1, 2, 3)]
    assert starts == [list(range(place, COUNT + place)) for place in range(3)]
    assert told.wall_s == COUNT + 2


@pytest.mark.parametrize("slow", [0, 1, 2, 3])
def test_the_slowest_part_sets_the_pace(slow: int):
    seconds = [1.0] * 4
    seconds[slow] = 5.0
    assert replay(pipeline(*computing(*seconds))).wall_s == 5 * COUNT + 3


def test_two_data_workers_are_twice_as_quick():
    # The last two come together, and are computed one after the other.
    assert replay(pipeline(*computing(4, 1), num_feeders=2)).wall_s == 4 * COUNT / 2 + 2


def test_fetching_is_hidden_behind_computing_while_credits_last():
    fetching = [NOTHING, replace(NOTHING, fetch_s=3.0, compute_s=1.0)]
    # Four are fetched at once, so that each is there when the one before it is done.
    assert replay(pipeline(*fetching)).wall_s == 3 + COUNT
    # One at a time: nothing is hidden.
    assert replay(pipeline(*fetching, in_flight=1)).wall_s == 4 * COUNT


def test_storing_is_hidden_behind_computing():
    storing = [NOTHING, replace(NOTHING, compute_s=1.0, store_s=3.0), replace(NOTHING, compute_s=1.0)]
    assert replay(pipeline(*storing, in_flight=COUNT)).wall_s == COUNT + 3 + 1
    # Each has its credit for 1 + 3 + 1 seconds: with one credit nothing is hidden.
    assert replay(pipeline(*storing, in_flight=1)).wall_s == 5 * COUNT


def test_the_driver_does_one_call_after_the_other():
    told = replay(pipeline(*computing(0, 0, 0), driver_s=1.0))
    assert told.wall_s == 3 * COUNT


def test_a_slow_receiver_makes_its_sender_wait():
    told = replay(pipeline(*computing(0, 1, 10), in_flight=1))
    first = [span for span in told.spans if span.place == 1]
    # One in flight: the next is begun when the receiver is done with it, 1 + 10 seconds later.
    assert [span.started_s for span in first[:4]] == [0.0, 11.0, 22.0, 33.0]


def test_a_parcel_goes_as_a_whole():
    items = microbatches(COUNT)
    parcels = [Parcel(tuple(items[start : start + 4])) for start in (0, 4)]
    wall_s = replay(replace(pipeline(*computing(0, 4, 4)), parcels=parcels)).wall_s
    assert wall_s == 3 * 4


def test_nothing_takes_nothing():
    assert replay(replace(pipeline(*computing(0, 1)), parcels=[])).wall_s == 0.0
