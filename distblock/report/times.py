"""Where each worker's seconds went, from a run's summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distblock.report.tables import duration, percent

Summary = Mapping[str, Any]
"""Content of ``summary.json``, of a run that was recorded."""

SHOWN = 0.005
"""Share of a worker's seconds below which a part is not told."""


@dataclass(frozen=True, kw_only=True)
class WorkerTime:
    """Where one worker's seconds went; of replicas the mean.

    Attributes:
        name: with its stages.
        compute_s: it computed.
        exposed_s: it idled, and what it needed was being fetched or decoded; or codecs took their turn among what it
            computes.
        credit_s: it idled with its input ready, for want of a credit.
        input_s: it idled otherwise: nothing was there to be fetched, at the pipeline's filling and draining too; or it
            read a cache.
        other_s: what is left of the run's seconds: calls' ways, what is between two computations, writing caches.
    """

    name: str
    compute_s: float
    exposed_s: float
    credit_s: float
    input_s: float
    other_s: float


PARTS = {
    "compute_s": "computing",
    "exposed_s": "communication (exposed)",
    "input_s": "waiting for input",
    "credit_s": "waiting for a credit",
    "other_s": "other",
}
"""How people read them."""


def edges_of(summary: Summary) -> list[dict[str, Any]]:
    """The edge from the data first."""
    return [summary["data_edge"], *summary["edges"]]


def first_stages(summary: Summary) -> list[int]:
    """Of each worker in order."""
    if "worker_stages" in summary:
        return summary["worker_stages"]
    # Of an earlier version: a worker begins where an edge was stored for it, the first one at stage 0.
    return [
        index
        for index, edge in enumerate(edges_of(summary)[: len(summary["stages"])])
        if index == 0 or edge["transport"] != "in process"
    ]


def exposed_share(summary: Summary) -> float:
    """Share of its seconds in which hops kept a worker from computing, of the worker for which that is most: one that
    waits for a slow link makes those before it wait for credits instead."""
    exposed_s = [sum(_exposed(summary, first, end)) for first, end in _workers(summary)]
    return max(exposed_s) / (summary.get("replicas", 1) * summary["wall_s"])


def worker_times(summary: Summary) -> list[WorkerTime]:
    """Of each worker in order."""
    stages, edges, wall_s = summary["stages"], edges_of(summary), summary["wall_s"]
    replicas = summary.get("replicas", 1)
    times = []
    for first, end in _workers(summary):
        compute_s = sum(stage["compute_s"] for stage in stages[first:end]) / replicas
        waited_s, in_turn_s = (seconds / replicas for seconds in _exposed(summary, first, end))
        # Workers idle before the first of them begins, too; the run's seconds count from there.
        most_s = max(0.0, wall_s - compute_s - in_turn_s)
        idle_s = min(sum(stage["idle_s"] for stage in stages[first:end]) / replicas, most_s)
        waited_s = min(idle_s, waited_s)
        credit_s = min(idle_s - waited_s, edges[end]["backpressure_s"]) if end < len(edges) else 0.0
        times.append(
            WorkerTime(
                name=f"stage {first}" if end == first + 1 else f"stages {first} to {end - 1}",
                compute_s=compute_s,
                exposed_s=waited_s + in_turn_s,
                credit_s=credit_s,
                input_s=idle_s - waited_s - credit_s,
                other_s=most_s - idle_s,
            )
        )
    return times


def time_sentences(summary: Summary) -> Iterator[str]:
    """Of a run that cannot be told again: a line each."""
    times, wall_s = worker_times(summary), summary["wall_s"]
    yield (
        f"{summary['samples_per_s']:,.0f} samples/s over {duration(wall_s)} of training, evaluation included. No replay"
        f" tells this run again ({summary['regime']} regime, executor {summary['executor']}), so there is no saying"
        " what would change; where each worker's seconds went:"
    )
    if summary["inputs"] == "cache":
        yield "  (Reading a cache is in waiting for input, writing one in other.)"
    for each in times:
        parts = sorted(((getattr(each, part), name) for part, name in PARTS.items()), reverse=True)
        told = ", ".join(f"{name} {duration(s)} ({percent(s / wall_s)})" for s, name in parts if s > SHOWN * wall_s)
        yield f"  {each.name}: {told}"
    busiest = max(times, key=lambda each: each.compute_s)
    yield f"Computing alone, {busiest.name} would be done in {duration(busiest.compute_s)}."
    lost = {name: sum(getattr(each, part) for each in times) for part, name in PARTS.items() if part != "compute_s"}
    most = max(lost, key=lambda name: lost[name])
    yield (
        f"Beside computing, workers spend most on {most}: {duration(lost[most])},"
        f" {percent(lost[most] / (len(times) * wall_s))} of all their time."
    )


def _workers(summary: Summary) -> list[tuple[int, int]]:
    """Of each its first stage, and the one after its last."""
    return list(pairwise([*first_stages(summary), len(summary["stages"])]))


def _exposed(summary: Summary, first: int, end: int) -> tuple[float, float]:
    """Seconds in which a worker idled for what came, and in which codecs at its ends and within it took their turn; of
    replicas together."""
    edges = edges_of(summary)
    # Runs of earlier versions did not tell what took its turn.
    decoded_s = sum(edge.get("decode_in_turn_s", 0.0) for edge in edges[first:end])
    encoded_s = sum(edge.get("encode_in_turn_s", 0.0) for edge in edges[first + 1 : end + 1])
    return edges[first]["exposed_s"], decoded_s + encoded_s
