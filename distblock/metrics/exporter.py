"""The Prometheus exporter: what a run has counted so far, over HTTP.

The client library's own counters live in a registry that all of a process shares, and add a creation time to each
series. Here plain numbers are kept under the metrics of the catalogue, in a registry of the run's own; the client
library turns them into text when they are scraped, so recording costs a few additions.

A counter that appears with its first failure has, for Prometheus, never risen: `increase` needs the 0 before it. So
every counter whose labels are known begins at 0, and what never happens can be told from what is not measured.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from distblock.errors import InputError
from distblock.messages import Departure, Failure, FailureKind, Item, Line, Part, StageReport, WorkerReport
from distblock.metrics import catalogue
from distblock.metrics.accounting import PassSums
from distblock.metrics.catalogue import BOUNDS_S, CATALOGUE, Metric
from distblock.metrics.hops import Hop, HopMatcher, edge_name
from distblock.metrics.staleness import Staleness

STATUS_PATH = "/status"
"""Where the exporter tells what workers are at; metrics are anywhere else."""


class Exporter:
    """Serves a run's metrics from its construction until it is closed.

    Args:
        run: value of the label ``run``.
        host: address to listen on.
        port: port to listen on; 0 takes any free one, see `port`.
        num_stages: stages of the run.

    Raises:
        InputError: the address or port cannot be listened on.
    """

    def __init__(self, *, run: str, host: str, port: int, num_stages: int) -> None:
        self._values = _Values(run)
        _begin_at_zero(self._values, num_stages)
        self._matcher = HopMatcher()
        self._staleness = Staleness(num_stages)
        self._passes: dict[tuple[int, Part], tuple[int, PassSums]] = {}
        registry = CollectorRegistry()
        registry.register(self._values)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise InputError(
                f"metrics.port: expected a free port on {host}, got {port} ({error.strerror or error});"
                " choose another, or 0 for any free one"
            ) from None

        self._standing: bytes | None = None
        self._server.set_app(self._answering(self._server.get_app()))

    def _answering(self, metrics: Any) -> Any:
        """An application that tells what workers are at, too."""

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            if environ.get("PATH_INFO") != STATUS_PATH:
                return metrics(environ, start_response)
            status = "503 Service Unavailable" if self._standing is None else "200 OK"
            start_response(status, [("Content-Type", "application/json")])
            return [self._standing or b"{}"]

        return application

    def set_standing(self, status: Mapping[str, Any]) -> None:
        """Say what each worker is at now: the content of ``status.json``; told at `STATUS_PATH`."""
        self._standing = json.dumps(status).encode()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def record(self, report: WorkerReport) -> None:
        """Count what a worker tells about one microbatch."""
        with self._values.lock:
            for stage in report.stages:
                if stage.role == "forward":
                    self._values.add(catalogue.COMPUTE, (str(stage.stage),), stage.compute_s)
                else:
                    self._count_stage(report.item, stage)
                self._values.set(catalogue.PEAK_MEMORY, (str(stage.stage),), report.peak_memory_bytes)
            if report.reused:
                self._values.add(catalogue.REUSES, (str(report.stages[0].stage),), len(report.reused))
            self._values.add(catalogue.COMPUTE, (str(report.stages[0].stage),), report.reuse_s)
            self._values.add(catalogue.IDLE, (str(report.stages[0].stage),), report.idle_s)
            for departure in report.departures:
                self._count_departure(departure, report.node)
            for arrival in report.arrivals:
                name = edge_name(arrival.edge)
                self._values.add(catalogue.HOP_SECONDS, (name, "fetch"), arrival.fetch_s)
                self._values.add(catalogue.HOP_SECONDS, (name, "decode"), arrival.decode_s)
                self._values.add(catalogue.EXPOSED, (name,), arrival.exposed_s)
                self._count_hop(name, self._matcher.arrive(arrival, node=report.node))
            self._staleness.record(report)
            for stage in report.stages:
                if stage.stage > 0:
                    self._set_staleness(stage.stage)

    def record_departure(self, departure: Departure, node: str) -> None:
        """Count the sender's side of a hop from the data to stage 0."""
        with self._values.lock:
            self._count_departure(departure, node)

    def record_backpressure(self, edge: int, seconds: float) -> None:
        """Count seconds in which the sender of an edge stood idle for want of a credit."""
        with self._values.lock:
            self._values.add(catalogue.BACKPRESSURE, (edge_name(edge),), seconds)

    def record_drop(self, edge: int) -> None:
        """A microbatch was dropped, since its receiver was too slow."""
        with self._values.lock:
            self._values.add(catalogue.DROPS, (edge_name(edge),), 1)
            self._matcher.drop(edge)

    def record_driver(self, busy_s: float) -> None:
        """The driver has worked for so long."""
        with self._values.lock:
            self._values.add(catalogue.DRIVER, (), busy_s)

    def record_failure(self, failure: Failure) -> None:
        """A failure has been survived."""
        with self._values.lock:
            self._values.add(catalogue.FAILURES, (failure.kind,), 1)

    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None:
        """Say what is in flight on an edge now."""
        with self._values.lock:
            self._values.set(catalogue.IN_FLIGHT, (edge_name(edge),), count)
            self._values.set(catalogue.IN_FLIGHT_BYTES, (edge_name(edge),), num_bytes)

    def set_lines(self, lines: Sequence[Line]) -> None:
        """Say what edges between two hosts lie on now; those not named have no series."""
        with self._values.lock:
            self._values.clear(catalogue.LINE_RATE)
            for line in lines:
                if line.rate_bytes_per_s is not None:
                    self._values.set(catalogue.LINE_RATE, (edge_name(line.edge),), line.rate_bytes_per_s)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count_stage(self, item: Item, report: StageReport) -> None:
        values, stage = self._values, str(report.stage)
        values.add(catalogue.MICROBATCHES, (stage, item.purpose), 1)
        values.add(catalogue.SAMPLES, (stage, item.purpose), report.num_samples)
        values.add(catalogue.COMPUTE, (stage,), report.compute_s)
        values.set(catalogue.EPOCH, (stage,), item.epoch + 1)
        if report.lr is not None:
            values.set(catalogue.LEARNING_RATE, (stage,), report.lr)
        if report.multiplier is not None:
            values.set(catalogue.MULTIPLIER, (stage,), report.multiplier)
        epoch, sums = self._passes.get((report.stage, item.part), (-1, PassSums()))
        if epoch != item.epoch:
            sums = PassSums()
            self._passes[report.stage, item.part] = item.epoch, sums
        sums.add(report, item.index)
        values.set(catalogue.LOSS, (stage, item.part), sums.loss)
        values.set(catalogue.ACCURACY, (stage, item.part), sums.accuracy)
        values.set(catalogue.TRANSPORT_COST, (stage, item.part), sums.transport_cost)

    def _set_staleness(self, edge: int) -> None:
        sums = self._staleness.edges[edge]
        self._values.set(catalogue.USES, (edge_name(edge),), sums.uses)
        self._values.set(catalogue.STALENESS, (edge_name(edge),), sums.updates)

    def _count_departure(self, departure: Departure, node: str) -> None:
        values, name = self._values, edge_name(departure.edge)
        values.add(catalogue.PAYLOAD, (name,), departure.payload_bytes)
        values.add(catalogue.WIRE, (name,), departure.wire_bytes)
        values.add(catalogue.HOP_SECONDS, (name, "encode"), departure.encode_s)
        values.add(catalogue.HOP_SECONDS, (name, "put"), departure.put_s)
        self._count_hop(name, self._matcher.depart(departure, node=node))

    def _count_hop(self, name: str, hop: Hop | None) -> None:
        if hop is None:
            return
        self._values.add(catalogue.HOPS, (name, hop.path), 1)
        if hop.path != "in_process":
            self._values.observe(catalogue.HOP_DURATION, (name,), hop.seconds)


MetricFamily = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class _Values(Collector):
    """Numbers by metric and label values (without the run's); whoever changes any holds the lock."""

    def __init__(self, run: str) -> None:
        self.lock = threading.Lock()
        self._run = run
        histograms = [metric for metric in CATALOGUE if metric.kind == "histogram"]
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {
            metric: {} for metric in CATALOGUE if metric not in histograms
        }
        # By bucket, and the sum.
        self._counts: dict[Metric, dict[tuple[str, ...], tuple[list[int], list[float]]]] = {
            metric: {} for metric in histograms
        }

    def add(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        values = self._values[metric]
        values[labels] = values.get(labels, 0) + value

    def set(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        self._values[metric][labels] = value

    def clear(self, metric: Metric) -> None:
        self._values[metric].clear()

    def observe(self, metric: Metric, labels: tuple[str, ...], seconds: float) -> None:
        counts, sums = self._counts[metric].setdefault(labels, ([0] * (len(BOUNDS_S) + 1), [0.0]))
        counts[bisect_left(BOUNDS_S, seconds)] += 1
        sums[0] += seconds

    def collect(self) -> Iterator[MetricFamily]:
        """Called by the server's thread at each scrape."""
        with self.lock:
            copy = {metric: dict(values) for metric, values in self._values.items()}
            histograms = {
                metric: {labels: (list(accumulate(counts)), sums[0]) for labels, (counts, sums) in series.items()}
                for metric, series in self._counts.items()
            }
        for metric, told in histograms.items():
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
            for labels, (counts, total) in told.items():
                buckets = list(zip([*map(str, BOUNDS_S), "+Inf"], counts, strict=True))
                family.add_metric([self._run, *labels], buckets, total)
            yield family
        for metric, values in copy.items():
            family_type = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = family_type(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
            for labels, value in values.items():
                family.add_metric([self._run, *labels], value)
            yield family


def _begin_at_zero(values: _Values, num_stages: int) -> None:
    """Set all counters whose labels are known. Not idling, which only first stages of workers have, nor hops' paths."""
    for stage in map(str, range(num_stages)):
        for purpose in ("train", "evaluate"):
            values.set(catalogue.MICROBATCHES, (stage, purpose), 0)
            values.set(catalogue.SAMPLES, (stage, purpose), 0)
        values.set(catalogue.COMPUTE, (stage,), 0)
        values.set(catalogue.REUSES, (stage,), 0)
    for edge in range(num_stages):
        name = (edge_name(edge),)
        for metric in (catalogue.PAYLOAD, catalogue.WIRE, catalogue.EXPOSED, catalogue.BACKPRESSURE, catalogue.DROPS):
            values.set(metric, name, 0)
        for phase in ("encode", "put", "fetch", "decode"):
            values.set(catalogue.HOP_SECONDS, (*name, phase), 0)
        values.set(catalogue.IN_FLIGHT, name, 0)
        values.set(catalogue.IN_FLIGHT_BYTES, name, 0)
    for edge in range(1, num_stages):
        values.set(catalogue.USES, (edge_name(edge),), 0)
        values.set(catalogue.STALENESS, (edge_name(edge),), 0)
    values.set(catalogue.DRIVER, (), 0)
    for kind in get_args(FailureKind):
        values.set(catalogue.FAILURES, (kind,), 0)
