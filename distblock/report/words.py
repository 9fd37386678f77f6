"""A verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distblock.metrics.hops import edge_name
from distblock.report.tables import duration, percent
from distblock.report.verdict import Cause, Verdict

SHOWN = 0.02
"""Of the time, what a cause must cost to be named."""

MOST = 6
"""Causes that are named."""


def sentences(verdict: Verdict) -> Iterator[str]:
    """A line each."""
    yield (
        f"{verdict.samples_per_s:,.0f} samples/s, evaluation included, over the last {_seconds(verdict.measured_s)} of"
        f" record (told again from what each call took: {_seconds(verdict.replayed_s)})."
    )
    if verdict.is_rough:
        yield "The two differ by more than 10 %: what follows is rough."
    yield (
        f"The slowest is {verdict.slowest}: it was busy for {_seconds(verdict.bound_s)} of them,"
        f" {percent(verdict.bound_s / verdict.measured_s)}."
    )
    named = [cause for cause in verdict.causes if cause.seconds > SHOWN * verdict.measured_s][:MOST]
    yield "What holds it back, each by itself:" if named else "Nothing else costs more than 2 % by itself."
    for cause in named:
        yield f"  {_seconds(cause.seconds)}, {percent(cause.seconds / verdict.measured_s)}: {_words(cause)}"
    yield "What would change, if there are cores for it:"
    for each in verdict.what_ifs:
        times = each.samples_per_s / verdict.samples_per_s
        yield f"  {each.change}: {each.samples_per_s:,.0f} samples/s, {times:.2f} times as many"


STALE_S = 15.0
"""Seconds after which a run under way should have been heard of."""


def standing_sentences(status: Mapping[str, Any], *, now_s: float) -> Iterator[str]:
    """Of a run under way: who is at what, whoever has finished nothing for longest first.

    Args:
        status: content of ``status.json``.
        now_s: seconds since the epoch.
    """
    age_s = now_s - status["written_s"]
    yield f"Under way, as of {age_s:.1f} s ago."
    if age_s > STALE_S:
        yield "The driver has not been heard of since: it hangs, or it is gone (then: distblock resume)."
    for each in sorted(status["workers"], key=lambda each: -each["since_s"]):
        yield f"  {_standing(each)}"


def _standing(each: Mapping[str, Any]) -> str:
    edge = None if each["edge"] is None else edge_name(each["edge"])
    if each.get("blocked") is not None:
        return (
            f"{each['who']} has been given nothing for {each['since_s']:.1f} s: as much is in flight on edge"
            f" {edge_name(each['blocked'])} as may be ({_limit(each['blocked'])})"
        )
    if each["at"] is None:
        return f"{each['who']} has nothing to do" + (f": nothing has come over edge {edge}" if edge else "")
    doing = "reading it" if edge is None else f"computing it, or fetching it over edge {edge}"
    calls = f", with {each['waiting']} calls given" if each["waiting"] > 1 else ""
    return f"{each['who']} has finished nothing for {each['since_s']:.1f} s: at {each['at']} ({doing}){calls}"


def _limit(edge: int) -> str:
    """The settings that say how much that is."""
    return "channel.max_in_flight, channel.max_in_flight_bytes" if edge else "data.prefetch"


def _words(cause: Cause) -> str:
    match cause.kind:
        case "worker":
            by = "" if cause.beyond_s is None else f", by {duration(cause.beyond_s)} a training microbatch"
            return f"{cause.where} is slower than the others{by}: saved if it were as quick as the next"
        case "uneven worker":
            return f"{cause.where} is uneven: saved if none of its microbatches took longer than the median"
        case "stopped worker":
            return f"{cause.where} stood still at microbatch {cause.number}"
        case "edge":
            return f"{cause.where}: saved if nothing had to be encoded, stored, fetched and decoded there"
        case "data":
            return "reading and augmenting the data"
        case "driver":
            return "the driver and its calls: saved if it handled them in no time"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else duration(seconds)
