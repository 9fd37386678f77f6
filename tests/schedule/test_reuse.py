"""The buffer of inputs that may be used again, and the pipeline in which nobody waits."""

from __future__ import annotations

from microbatches import microbatches

from distblock.messages import Item, Parcel
from distblock.schedule.credits import Credits, Limit
from distblock.schedule.dispatch import Dispatcher
from distblock.schedule.parcels import parcels
from distblock.schedule.reuse import ReuseBuffer


def draws(buffer: ReuseBuffer[str], count: int) -> list[str | None]:
    return [buffer.draw() for _ in range(count)]


def test_the_newest_of_the_least_used_first_and_no_more_often_than_allowed():
    buffer: ReuseBuffer[str] = ReuseBuffer(size=3, order="newest", max_reuses=2, seed=0)
    for entry in "abcd":
        buffer.add(entry)
    assert draws(buffer, 7) == ["d", "c", "b", "d", "c", "b", None]


def test_the_oldest_first():
    buffer: ReuseBuffer[str] = ReuseBuffer(size=2, order="oldest", max_reuses=1, seed=0)
    for entry in "abc":
        buffer.add(entry)
    assert draws(buffer, 3) == ["b", "c", None]


def test_at_random_each_comes_as_often_as_allowed():
    buffer: ReuseBuffer[str] = ReuseBuffer(size=4, order="random", max_reuses=3, seed=1)
    for entry in "abcd":
        buffer.add(entry)
    drawn = draws(buffer, 13)
    assert drawn.pop() is None
    assert sorted(str(each) for each in drawn) == sorted("abcd" * 3)
    assert drawn[:4] != ["a", "b", "c", "d"]


def flow(stream: list[Item], *, slow: int) -> tuple[list[list[int]], Dispatcher, int]:
    """Data, and three workers; one takes 5 ticks an item, the others 1. What each place has begun, and ticks until the
    first worker was done."""
    edges = [Credits(Limit(count=2, num_bytes=1000)) for _ in range(3)]
    dispatcher = Dispatcher(parcels(iter(stream), lambda: 1), edges=edges, size=lambda edge, parcel: 1, drops=True)
    begun: list[list[int]] = [[] for _ in range(4)]
    queues: list[list[Parcel]] = [[] for _ in range(4)]
    left = [0] * 4
    tick = first_done = 0
    dispatches = dispatcher.begin(0.0)
    while dispatches or any(queues):
        for dispatch in dispatches:
            begun[dispatch.place].append(dispatch.parcel.number)
            queues[dispatch.place].append(dispatch.parcel)
        for place, queue in enumerate(queues):
            left[place] += bool(queue)
            if queue and left[place] >= (5 if place == slow else 1):
                left[place] = 0
                parcel = queue.pop(0)
                dispatcher.finish(place, parcel)
                if place == 1 and parcel.number == len(stream) - 1:
                    first_done = tick
        tick += 1
        dispatches = dispatcher.begin(float(tick))
    assert dispatcher.is_finished
    assert [edge.count for edge in edges] == [0, 0, 0]
    return begun, dispatcher, first_done


def test_a_slow_place_holds_nobody_up_and_works_on_what_is_newest():
    begun, dispatcher, done = flow(microbatches(40), slow=2)
    assert begun[1] == list(range(40))
    assert done <= 43  # one item a tick, and the way there
    assert begun[2][0] == 0
    assert begun[2][-1] == 39
    assert len(begun[2]) < 20
    assert sorted(begun[2] + [parcel.number for _, parcel in dispatcher.dropped]) == list(range(40))
    assert begun[3] == begun[2]


def test_nothing_is_dropped_where_nobody_is_slow():
    begun, dispatcher, _ = flow(microbatches(40), slow=-1)
    assert begun[3] == list(range(40))
    assert dispatcher.dropped == []


def test_evaluations_are_never_dropped():
    begun, dispatcher, _ = flow(microbatches(20, purpose="evaluate"), slow=2)
    assert begun[3] == list(range(20))
    assert dispatcher.dropped == []
