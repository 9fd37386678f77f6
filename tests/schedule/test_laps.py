"""The grid of laps and stages: its drawing, and what it leaves lying about."""

from __future__ import annotations

import pytest

from distblock.schedule.laps import Cell, Laps, Room, choose_inputs, phases


def draw(num_stages: int, num_laps: int, *, at_once: bool) -> list[str]:
    """A row a stage, a column a phase: the lap it trains, or a dot."""
    columns = phases(num_stages, num_laps, at_once=at_once)
    laps = [{cell.stage: str(cell.lap) for cell in column} for column in columns]
    return ["".join(column.get(stage, ".") for column in laps) for stage in range(num_stages)]


def test_the_wavefront_is_its_drawing():
    assert draw(3, 4, at_once=True) == ["0123..", ".0123.", "..0123"]


def test_more_stages_than_laps():
    assert draw(4, 2, at_once=True) == ["01...", ".01..", "..01.", "...01"]


def test_multi_lap_is_one_stage_at_a_time():
    assert draw(3, 2, at_once=False) == ["0..1..", ".0..1.", "..0..1"]


@pytest.mark.parametrize("num_stages", [1, 3, 9])
@pytest.mark.parametrize("num_laps", [1, 2, 4])
def test_the_wavefront_takes_laps_plus_stages_less_one_phases(num_stages: int, num_laps: int):
    drawn = phases(num_stages, num_laps, at_once=True)
    assert len(drawn) == num_laps + num_stages - 1
    assert sorted(cell for phase in drawn for cell in phase) == sorted(
        Cell(lap=lap, stage=stage) for lap in range(num_laps) for stage in range(num_stages)
    )


def run(laps: Laps, *, slow: int) -> list[str]:
    """Carry out the grid; all stages take one tick a lap but one, which takes five. What is held after each tick."""
    left: dict[Cell, int] = {}
    log = []
    while not laps.is_finished:
        for cell in laps.begin():
            left[cell] = 5 if cell.stage == slow else 1
        for cell in list(left):
            left[cell] -= 1
            if left[cell] == 0:
                del left[cell]
                for freed in laps.finish(cell):
                    log.append(f"{freed.stage}/{freed.lap} freed after {cell.stage}/{cell.lap}")
    return log


def test_a_cache_is_freed_after_the_next_stage_has_read_it():
    room = Room(inputs="cache", stage_bytes=(10, 10, 0), limit_bytes=1000)
    log = run(Laps(3, 2, at_once=True, room=room), slow=0)
    assert log == [
        "0/0 freed after 1/0",
        "1/0 freed after 2/0",
        "0/1 freed after 1/1",
        "1/1 freed after 2/1",
    ]


def test_frozen_weights_are_freed_after_the_last_stage_of_their_lap():
    room = Room(inputs="frozen", stage_bytes=(10, 10, 10), limit_bytes=1000)
    laps = Laps(3, 2, at_once=True, room=room)
    # Only lap 0 is overtaken, and only by the stages before the last.
    assert run(laps, slow=2) == ["0/0 freed after 2/0", "1/0 freed after 2/0"]
    assert laps.peak_bytes == 20


@pytest.mark.parametrize("limit", [20, 30, 40, 60, 1000])
@pytest.mark.parametrize("slow", [0, 1, 2, 3])
def test_what_is_held_stays_below_the_limit_and_nobody_waits_for_ever(limit: int, slow: int):
    room = Room(inputs="cache", stage_bytes=(10, 10, 10, 0), limit_bytes=limit)
    laps = Laps(4, 6, at_once=True, room=room)
    run(laps, slow=slow)
    assert 20 <= laps.peak_bytes <= limit


def test_one_at_a_time_holds_what_one_stage_reads_and_leaves():
    room = Room(inputs="cache", stage_bytes=(30, 20, 10, 0), limit_bytes=1000)
    laps = Laps(4, 3, at_once=False, room=room)
    run(laps, slow=1)
    assert laps.peak_bytes == room.least_bytes == 50


def choose(wish, **changes):
    numbers = {"is_cacheable": True, "output_bytes": (10, 0), "weight_bytes": (1, 1), "limit_bytes": 100}
    return choose_inputs(wish, **{**numbers, **changes}).inputs


def test_auto_caches_unless_images_are_augmented_or_the_cache_is_too_large():
    assert choose("auto") == "cache"
    assert choose("auto", is_cacheable=False) == "frozen"
    assert choose("auto", limit_bytes=9) == "frozen"
    assert choose("frozen") == "frozen"


def test_a_cache_that_was_asked_for_and_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="expected at least 10 for the outputs"):
        choose("cache", limit_bytes=9)
