"""When a silent worker counts as dead, and when a run ends; by hand."""

from __future__ import annotations

from distblock.schedule.failure import SLACK, START_S, Deadline, Failures
from distblock.schedule.ledger import Ledger


def test_an_idle_worker_is_never_overdue():
    deadline = Deadline(5.0)
    assert deadline.overdue_s(1e9) is None
    deadline.begin(0.0)
    deadline.finish(1.0, is_idle=True)
    assert deadline.overdue_s(1e9) is None


def test_the_first_call_may_take_longer():
    deadline = Deadline(5.0)
    deadline.begin(10.0)
    assert deadline.overdue_s(10.0 + START_S) is None
    assert deadline.overdue_s(11.0 + START_S) == START_S + 1.0


def test_the_deadline_follows_what_the_worker_has_been_taking():
    deadline = Deadline(5.0)
    deadline.begin(0.0)
    deadline.begin(0.5)
    deadline.finish(1.0, is_idle=False)
    # 20 times the second that it took is more than the least of 5.
    assert deadline.overdue_s(1.0 + SLACK) is None
    assert deadline.overdue_s(1.5 + SLACK) == SLACK + 0.5
    quick = Deadline(5.0)
    quick.begin(0.0)
    quick.finish(0.1, is_idle=False)
    assert quick.overdue_s(5.0) is None
    assert quick.overdue_s(6.1) == 6.0


def test_whoever_takes_over_gets_time_to_start():
    deadline = Deadline(5.0)
    deadline.begin(0.0)
    deadline.finish(0.1, is_idle=False)
    deadline.restart(10.0, is_idle=False)
    assert deadline.overdue_s(10.0 + START_S) is None
    # It may have died again while it computed what is known already: then there is nothing to wait for.
    deadline.restart(10.0, is_idle=True)
    assert deadline.overdue_s(1e9) is None


def test_a_run_survives_any_number_of_failures_at_different_places():
    failures = Failures(-1)
    assert [failures.tell("worker 0", f"epoch {turn}", "killed") for turn in range(50)] == [None] * 50


def test_the_same_place_again_and_again_ends_the_run():
    failures = Failures(-1)
    told = [("worker 0", "killed"), ("worker 1", "killed"), ("worker 0", "frozen"), ("worker 0", "frozen")]
    verdicts = [failures.tell(who, "epoch 1", cause) for who, cause in told]
    assert verdicts == [None, None, None, "for the 3rd time at the same place; the first time: killed"]


def test_a_limit_of_failures():
    failures = Failures(1)
    assert failures.tell("worker 0", "epoch 1", "killed") is None
    assert failures.tell("worker 1", "epoch 1", "killed") == "failure 2, and recovery.max_failures is 1"


def test_a_ledger_keeps_what_no_snapshot_holds():
    ledger: Ledger[str] = Ledger()
    for name in "abcd":
        ledger.begin(name, 10, 3)
    assert ledger.finish(0)
    assert ledger.finish(1)
    assert not ledger.finish(1), "known already"
    ledger.cover(1)
    assert [(e.turn, e.call, e.is_finished) for e in ledger.entries] == [
        (1, "b", True),
        (2, "c", False),
        (3, "d", False),
    ]
    assert [entry.call for entry in ledger.unfinished] == ["c", "d"]
    assert (ledger.kept_bytes, ledger.kept_microbatches, ledger.next_turn) == (30, 9, 4)
    assert not ledger.finish(0), "covered"
