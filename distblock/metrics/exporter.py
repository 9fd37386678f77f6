"""The Prometheus exporter: what a run has counted so far, over HTTP.

Recording costs nothing here: a scrape reads the account, in a registry of the run's own (the client library's counters
live in one that all of a process shares, and add a creation time to each series). An account goes back with its run, to
a checkpoint, and a counter must not: Prometheus takes one that falls for one that began anew. So counters go on from
what they said last, and what is done again counts again.

A counter that appears with its first failure has, for Prometheus, never risen: `increase` needs the 0 before it. So
every counter whose labels are known begins at 0, and what never happens can be told from what is not measured.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from distblock.errors import InputError
from distblock.messages import Failure, FailureKind, Line
from distblock.metrics import catalogue
from distblock.metrics.accounting import Account
from distblock.metrics.catalogue import CATALOGUE, Metric
from distblock.metrics.hops import edge_name
from distblock.metrics.readings import SUM, Series, counters, gauges

STATUS_PATH = "/status"
"""Where the exporter tells what workers are at."""

RECENT_PATH = "/recent"
"""Where it tells what has just happened, as ``recent.parquet``; metrics are anywhere else."""


class Exporter:
    """Serves a run's metrics from its construction until it is closed.

    Args:
        run: value of the label ``run``.
        host: address to listen on.
        port: port to listen on; 0 takes any free one, see `port`.
        account: the run's sums, counters counting from what it says now.

    Raises:
        InputError: the address or port cannot be listened on.
    """

    def __init__(self, *, run: str, host: str, port: int, account: Account) -> None:
        self._values = _Values(run, account)
        registry = CollectorRegistry()
        registry.register(self._values)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise InputError(
                f"metrics.port: expected a free port on {host}, got {port} ({error.strerror or error});"
                " choose another, or 0 for any free one"
            ) from None

        self._told: dict[str, tuple[str, bytes | None]] = {
            STATUS_PATH: ("application/json", None),
            RECENT_PATH: ("application/vnd.apache.parquet", None),
        }
        self._server.set_app(self._answering(self._server.get_app()))

    def _answering(self, metrics: Any) -> Any:
        """An application that tells what workers are at, too."""

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            path = environ.get("PATH_INFO")
            if path not in self._told:
                return metrics(environ, start_response)
            kind, content = self._told[path]
            start_response("503 Service Unavailable" if content is None else "200 OK", [("Content-Type", kind)])
            return [content or b"{}"]

        return application

    def _tell(self, path: str, content: bytes) -> None:
        self._told[path] = self._told[path][0], content

    def set_standing(self, status: Mapping[str, Any]) -> None:
        """Say what each worker is at now: the content of ``status.json``; told at `STATUS_PATH`."""
        self._tell(STATUS_PATH, json.dumps(status).encode())

    def set_recent(self, content: bytes) -> None:
        """Say what has just happened: the content of ``recent.parquet``; told at `RECENT_PATH`."""
        self._tell(RECENT_PATH, content)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def follow(self, account: Account) -> None:
        """Read another account from now on: the run has gone back, or goes on from an earlier one."""
        self._values.follow(account)

    def record_driver(self, busy_s: float) -> None:
        """The driver has worked for so long."""
        self._values.add(catalogue.DRIVER, (), busy_s)

    def record_failure(self, failure: Failure) -> None:
        """A failure has been survived."""
        self._values.add(catalogue.FAILURES, (failure.kind,), 1)

    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None:
        """Say what is in flight on an edge now."""
        name = (edge_name(edge),)
        self._values.set({(catalogue.IN_FLIGHT, name): count, (catalogue.IN_FLIGHT_BYTES, name): num_bytes})

    def set_lines(self, lines: Sequence[Line]) -> None:
        """Say what edges between two hosts lie on now; those not named have no series."""
        rates = {edge_name(line.edge): line.rate_bytes_per_s for line in lines}
        known = {(catalogue.LINE_RATE, (name,)): rate for name, rate in rates.items() if rate is not None}
        self._values.replace(catalogue.LINE_RATE, known)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


MetricFamily = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class _Values(Collector):
    """The account's numbers, and those that no account has."""

    def __init__(self, run: str, account: Account) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._own = _beginning(account.num_stages)
        self._account = account
        # What counters said when they began to follow this account, and what it said then.
        self._said: dict[Series, float] = {}
        self._since = _locked(counters, account)

    def follow(self, account: Account) -> None:
        with self._lock:
            self._said, self._since = self._counters(), _locked(counters, account)
            self._account = account

    def add(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        with self._lock:
            self._own[metric, labels] += value

    def set(self, values: Mapping[Series, float]) -> None:
        with self._lock:
            self._own.update(values)

    def replace(self, metric: Metric, values: dict[Series, float]) -> None:
        """Set all of a metric's series: it has no others."""
        with self._lock:
            self._own = {series: value for series, value in self._own.items() if series[0] is not metric} | values

    def collect(self) -> Iterator[MetricFamily]:
        """Called by the server's thread at each scrape."""
        with self._lock:
            told = {**self._counters(), **_locked(gauges, self._account), **self._own}
        of_metric: dict[Metric, dict[tuple[str, ...], float]] = {metric: {} for metric in CATALOGUE}
        for (metric, labels), value in told.items():
            of_metric[metric][labels] = value
        for metric, values in of_metric.items():
            yield self._histogram(metric, values) if metric.kind == "histogram" else self._plain(metric, values)

    def _counters(self) -> dict[Series, float]:
        now = _locked(counters, self._account)
        # Not even by a rounding may a counter fall.
        return {
            series: self._said.get(series, 0) + max(0, now.get(series, 0) - self._since.get(series, 0))
            for series in {**self._said, **now}
        }

    def _plain(self, metric: Metric, values: Mapping[tuple[str, ...], float]) -> MetricFamily:
        family_type = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = family_type(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
        for labels, value in values.items():
            family.add_metric([self._run, *labels], value)
        return family

    def _histogram(self, metric: Metric, values: Mapping[tuple[str, ...], float]) -> MetricFamily:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
        buckets: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        for (*labels, bound), value in values.items():
            buckets[tuple(labels)][bound] = value
        for labels, counts in buckets.items():
            total = counts.pop(SUM)
            family.add_metric([self._run, *labels], list(counts.items()), total)
        return family


def _locked(read: Callable[[Account], dict[Series, float]], account: Account) -> dict[Series, float]:
    """Whole reports: none that is being counted."""
    with account.lock:
        return read(account)


def _beginning(num_stages: int) -> dict[Series, float]:
    """What no account has, where its labels are known."""
    edges = [(edge_name(edge),) for edge in range(num_stages)]
    return {
        **{(metric, edge): 0.0 for metric in (catalogue.IN_FLIGHT, catalogue.IN_FLIGHT_BYTES) for edge in edges},
        (catalogue.DRIVER, ()): 0.0,
        **{(catalogue.FAILURES, (kind,)): 0.0 for kind in get_args(FailureKind)},
    }
