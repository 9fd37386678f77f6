"""Threads that come in any order go in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from distblock.runtime.turns import Turns


def test_turns_go_by_number():
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns.turn(number):
            order.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [5, 3, 7, 1, 0, 2, 6, 4]))
    assert order == list(range(8))


def test_after_a_failure_nobody_waits_for_ever():
    turns = Turns()
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            with turns.turn(3):
                pass
        except ZeroDivisionError as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    first = ZeroDivisionError("the first")
    turns.fail(first)
    turns.fail(ValueError("a later one"))
    thread.join(timeout=10)
    assert seen == [first]
    with pytest.raises(ZeroDivisionError), turns.turn(0):
        pass
