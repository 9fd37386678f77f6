"""The pipeline's state machine. Its test is its drawing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from microbatches import microbatches

from distblock.messages import Parcel
from distblock.schedule.credits import Credits, Limit
from distblock.schedule.dispatch import Dispatcher
from distblock.schedule.parcels import parcels

IDLE = -1


def draw(num_items: int, *, limits: Sequence[int], durations: Sequence[int]) -> tuple[list[str], dict[int, float]]:
    """Simulate: place p takes durations[p] ticks an item, one at a time. A row per place, a column per tick, and the
    backpressure in ticks of each edge."""
    dispatcher = Dispatcher(
        parcels(iter(microbatches(num_items)), lambda: 1),
        edges=[Credits(Limit(count=count, num_bytes=10**9)) for count in limits],
        size=lambda edge, parcel: 1,
    )
    queues: list[list[Parcel]] = [[] for _ in durations]
    busy_until = [IDLE] * len(durations)
    rows: list[list[str]] = [[] for _ in durations]
    waited = dict.fromkeys(range(len(limits)), 0.0)
    tick = 0
    while not (dispatcher.is_finished and tick > 0):
        for place, queue in enumerate(queues):  # whoever ends now has ended before anyone begins
            if queue and busy_until[place] == tick:
                dispatcher.finish(place, queue.pop(0))
                busy_until[place] = IDLE
        for dispatch in dispatcher.begin(tick):
            queues[dispatch.place].append(dispatch.parcel)
            if dispatch.place in waited:
                waited[dispatch.place] += dispatch.backpressure_s
        for place, queue in enumerate(queues):
            if queue and busy_until[place] == IDLE:
                busy_until[place] = tick + durations[place]
            rows[place].append(str(queue[0].number) if queue else ".")
        tick += 1
    return ["".join(row[:-1]) for row in rows], waited


def test_parallel_regime_is_a_staircase():
    drawing, waited = draw(5, limits=[8, 8, 8], durations=[1, 1, 1, 1])
    assert drawing == [
        "01234...",
        ".01234..",
        "..01234.",
        "...01234",
    ]
    assert waited == {0: 0, 1: 0, 2: 0}


def test_the_slowest_worker_sets_the_pace_and_senders_wait_for_credits():
    # Edge 1 (worker 0 to worker 1) holds two microbatches: the one being computed and one ahead. Worker 0 computes 0
    # and 1, then stands idle with 2 until worker 1 ends 0, and so on: one idle tick for each of 2 and 3.
    drawing, waited = draw(4, limits=[8, 2], durations=[1, 1, 2])
    assert drawing == [
        "0123......",
        ".01.2.3...",
        "..00112233",
    ]
    assert waited == {0: 0, 1: 2}


def test_who_is_blocked_and_since_when():
    dispatcher = Dispatcher(
        parcels(iter(microbatches(9)), lambda: 1),
        edges=[Credits(Limit(count=count, num_bytes=10**9)) for count in (99, 2)],
        size=lambda edge, parcel: 1,
    )
    begun = [dispatch.parcel for dispatch in dispatcher.begin(0.0)]
    for parcel in begun:
        dispatcher.finish(0, parcel)
    first, second = (dispatch.parcel for dispatch in dispatcher.begin(1.0) if dispatch.place == 1)
    # The first worker has more to begin, and two are under way: it is not idle.
    assert list(dispatcher.blocked()) == []
    for parcel in (first, second):
        dispatcher.finish(1, parcel)
    dispatcher.begin(2.0)
    dispatcher.begin(3.0)
    # Both credits of the edge behind it are with the second worker.
    assert list(dispatcher.blocked()) == [(1, 2.0)]
    dispatcher.finish(2, first)
    dispatcher.begin(4.0)
    assert list(dispatcher.blocked()) == []


def test_one_credit_takes_turns():
    drawing, _ = draw(3, limits=[8, 1], durations=[1, 1, 1])
    assert drawing[1:] == [
        ".0.1.2.",
        "..0.1.2",
    ]


def test_one_microbatch_always_passes_and_bytes_bound_the_rest():
    credits = Credits(Limit(count=4, num_bytes=100))
    assert credits.has_room(1000)
    credits.take(60, 3)
    assert (credits.count, credits.num_microbatches) == (1, 3)
    assert credits.has_room(40)
    assert not credits.has_room(41)
    credits.give_back(60, 3)
    assert (credits.count, credits.num_microbatches) == (0, 0)
    assert credits.has_room(1000)


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
def test_items_that_arrive_out_of_order_begin_in_order(order: list[int]):
    # Several data workers finish in any order.
    dispatcher = Dispatcher(
        parcels(iter(microbatches(3)), lambda: 1),
        edges=[Credits(Limit(count=8, num_bytes=100))],
        size=lambda edge, parcel: 1,
    )
    sent = [dispatch.parcel for dispatch in dispatcher.begin(0.0)]
    begun = []
    for number in order:
        dispatcher.finish(0, sent[number])
        begun += [dispatch.parcel.number for dispatch in dispatcher.begin(0.0) if dispatch.place == 1]
    assert begun == [0, 1, 2]


def test_never_more_in_flight_than_the_limit():
    dispatcher = Dispatcher(
        parcels(iter(microbatches(20)), lambda: 1),
        edges=[Credits(Limit(count=count, num_bytes=10)) for count in (3, 2)],
        size=lambda edge, parcel: 1,
    )
    running = dispatcher.begin(0.0)
    begun = 0
    while running:
        assert dispatcher.edges[0].count <= 3
        assert dispatcher.edges[1].count <= 2
        dispatch = running.pop()
        begun += 1
        dispatcher.finish(dispatch.place, dispatch.parcel)
        running += dispatcher.begin(0.0)
    assert begun == 60
    assert dispatcher.is_finished
