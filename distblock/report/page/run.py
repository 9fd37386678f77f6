"""A run as the report reads it, and where its workers' time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from distblock.config import Config
from distblock.report.calibration import Recording
from distblock.report.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Run:
    """What its directory holds.

    Attributes:
        name: of the directory.
        config: ``config.yaml``.
        summary: ``summary.json``.
        metrics: rows of ``metrics.parquet``.
        timeline: ``timeline.parquet``; None where there is none.
        recording: the stretch of it that can be told again; None where there is none.
        verdict: on that.
        early_exits: ``early_exit.json``; None: nobody has measured them.
    """

    name: str
    config: Config
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timeline: pa.Table | None
    recording: Recording | None
    verdict: Verdict | None
    early_exits: Mapping[str, Any] | None = None

    @property
    def edges(self) -> list[dict[str, Any]]:
        """The edge from the data first."""
        return [self.summary["data_edge"], *self.summary["edges"]]

    @property
    def stored_edges(self) -> list[dict[str, Any]]:
        """Those whose hops were more than a passing on within a worker."""
        return [edge for edge in self.edges if edge["sizes"]]

    @property
    def exposed_share(self) -> float:
        """Share of its seconds in which hops kept a worker from computing, of the worker for which that is most: one
        that waits for a slow link makes those before it wait for credits instead."""
        exposed_s = [sum(_exposed(self, first, end)) for first, end in _workers(self)]
        return max(exposed_s) / (self.summary["replicas"] * self.summary["wall_s"])


@dataclass(frozen=True, kw_only=True)
class WorkerTime:
    """Where one worker's seconds went; of replicas the mean.

    Attributes:
        name: with its stages.
        compute_s: it computed.
        exposed_s: it idled, and what it needed was being fetched or decoded; or a codec that remembers took its turn.
        credit_s: it idled with its input ready, for want of a credit.
        input_s: it idled otherwise: nothing was there to be fetched, at the pipeline's filling and draining too.
        other_s: what is left of the run's seconds: calls' ways, and what is between two computations.
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


def first_stages(run: Run) -> list[int]:
    """Of each worker in order: one begins where an edge was stored for it, the first one at stage 0."""
    edges = run.edges
    return [
        index for index in range(len(run.summary["stages"])) if index == 0 or edges[index]["transport"] != "in process"
    ]


def _workers(run: Run) -> list[tuple[int, int]]:
    """Of each its first stage, and the one after its last."""
    firsts = first_stages(run)
    return list(pairwise([*firsts, len(run.summary["stages"])]))


def _exposed(run: Run, first: int, end: int) -> tuple[float, float]:
    """Seconds in which a worker idled for what came, and in which codecs at its two ends took their turn; of replicas
    together."""
    entering = run.edges[first]
    # Runs of earlier versions did not tell them apart.
    encoded_s, decoded_s = entering.get("encode_in_turn_s", 0.0), entering.get("decode_in_turn_s", 0.0)
    leaving_s = run.edges[end].get("encode_in_turn_s", 0.0) if end < len(run.edges) else 0.0
    return entering["exposed_s"] - encoded_s - decoded_s, decoded_s + leaving_s


def worker_times(run: Run) -> list[WorkerTime]:
    """Of each worker in order."""
    stages, edges, wall_s = run.summary["stages"], run.edges, run.summary["wall_s"]
    replicas = run.summary["replicas"]
    times = []
    for first, end in _workers(run):
        compute_s = sum(stage["compute_s"] for stage in stages[first:end]) / replicas
        # Workers idle before the first of them begins, too; the run's seconds count from there.
        idle_s = min(sum(stage["idle_s"] for stage in stages[first:end]) / replicas, max(0.0, wall_s - compute_s))
        waited_s, in_turn_s = (seconds / replicas for seconds in _exposed(run, first, end))
        waited_s = min(idle_s, waited_s)
        other_s = max(0.0, wall_s - compute_s - idle_s)
        in_turn_s = min(other_s, in_turn_s)
        credit_s = min(idle_s - waited_s, edges[end]["backpressure_s"]) if end < len(edges) else 0.0
        name = f"stage {first}" if end == first + 1 else f"stages {first} to {end - 1}"
        times.append(
            WorkerTime(
                name=name,
                compute_s=compute_s,
                exposed_s=waited_s + in_turn_s,
                credit_s=credit_s,
                input_s=idle_s - waited_s - credit_s,
                other_s=other_s - in_turn_s,
            )
        )
    return times


def bubble_share(run: Run) -> float | None:
    """Share of the workers' seconds before each one's first computing and after its last; None: not recorded."""
    if run.timeline is None:
        return None
    rows = [row for row in run.timeline.select(["worker", "started_s", "finished_s"]).to_pylist() if row["worker"] >= 0]
    begun_s, ended_s = min(row["started_s"] for row in rows), max(row["finished_s"] for row in rows)
    workers = {row["worker"] for row in rows}
    idle_s = 0.0
    for worker in workers:
        own = [row for row in rows if row["worker"] == worker]
        idle_s += min(row["started_s"] for row in own) - begun_s + ended_s - max(row["finished_s"] for row in own)
    return idle_s / (len(workers) * run.summary["wall_s"])
