"""A run as the report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distblock.config import Config
from distblock.report.calibration import Recording
from distblock.report.times import edges_of
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
        return edges_of(self.summary)

    @property
    def stored_edges(self) -> list[dict[str, Any]]:
        """Those whose hops were more than a passing on within a worker."""
        return [edge for edge in self.edges if edge["sizes"]]


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
