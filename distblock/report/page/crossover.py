"""The network of a run as another way of training would see it: what `distblock.planning.crossover` asks for."""

from __future__ import annotations

import statistics
from collections import defaultdict

from distblock.planning.crossover import Workload
from distblock.report.calibration import ONE_STREAM, place_of
from distblock.report.page.run import Run
from distblock.report.times import first_stages


def workload(run: Run) -> Workload | None:
    """What a run measured of its network; None: it had one worker, stages that train one by one, or no record.

    A worker's seconds are its median training microbatch's. Where it holds several stages, all of their classifiers
    are in them, which other ways of training do without.
    """
    num_samples, edges = run.summary.get("num_samples"), run.edges
    firsts = first_stages(run.summary)
    if run.timeline is None or not num_samples or len(firsts) < 2 or run.config.regime.name not in ONE_STREAM:
        return None
    each_s: dict[int, list[float]] = defaultdict(list)
    columns = ["worker", "purpose", "started_s", "finished_s", "num_samples"]
    for row in run.timeline.select(columns).to_pylist():
        place = place_of(row["worker"], run.config.workers_per_stage)
        if place and row["purpose"] == "train":
            each_s[place].append((row["finished_s"] - row["started_s"]) / row["num_samples"])
    if len(each_s) < len(firsts):
        return None
    return Workload(
        worker_s=tuple(statistics.median(each_s[place]) for place in sorted(each_s)),
        edge_bytes=tuple(edges[first]["payload_bytes"] / num_samples for first in firsts[1:]),
        num_parameters=sum(stage["num_parameters"] for stage in run.summary["stages"]),
        batch_size=run.config.data.batch_size,
        replicas=run.config.workers_per_stage,
    )


def line_bytes_per_s(run: Run) -> float | None:
    """The slowest line between two of its workers; None: they were on one host, or it is not known."""
    rates = [edge["line_rate_bytes_per_s"] for edge in run.edges[1:] if edge["line_rate_bytes_per_s"]]
    return min(rates, default=None)
