"""The logs of a run as Arrow tables: ``metrics.parquet`` and ``hops.parquet``.

A row per hop would outgrow the run's other files, and a sum per edge would hide when it was slow. So hops are summed
per edge and reporting interval, as differences of the account's sums: added up, the rows give these sums again.
Tables only; nothing here writes to a file system or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from distblock.config import FORMAT_VERSION
from distblock.metrics.accounting import Account, StageRow
from distblock.metrics.histogram import Histogram
from distblock.metrics.hops import EdgeSums

_METADATA = {"format_version": str(FORMAT_VERSION)}
_BATCH_ROWS = 4096
_Row = dict[str, float | str | None]

METRICS_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("stage", "lap", "epoch")),
        *(
            (f"{part}_{figure}", pa.float64())
            for part in ("train", "validation", "test")
            for figure in ("loss", "accuracy", "transport_cost")
        ),
        ("num_samples", pa.int64()),
        *((name, pa.float64()) for name in ("compute_s", "idle_s", "lr", "multiplier")),
    ],
    metadata=_METADATA,
)
"""Columns of ``metrics.parquet``: the attributes of `StageRow`."""

HOPS_COUNTS = ("hops", "payload_bytes", "wire_bytes")
HOPS_SECONDS = (
    *("encode_s", "put_s", "fetch_s", "decode_s"),
    *("exposed_s", "encode_in_turn_s", "decode_in_turn_s", "backpressure_s"),
)
HOPS_QUANTILES = {"min_s": 0.0, "p50_s": 0.5, "p99_s": 0.99, "p999_s": 0.999}

HOPS_SCHEMA = pa.schema(
    [
        ("start_s", pa.float64()),
        ("edge", pa.string()),
        *((name, pa.int64()) for name in HOPS_COUNTS),
        *((name, pa.float64()) for name in (*HOPS_SECONDS, *HOPS_QUANTILES)),
    ],
    metadata=_METADATA,
)
"""Columns of ``hops.parquet``: start of the interval in seconds since the run's start, the edge's name, sums, and
quantiles of a hop's own seconds at both ends, within 1 %; none where no hop that left its process was over."""


def metrics_table(rows: Sequence[StageRow]) -> pa.Table:
    """Rows as they stand in ``metrics.parquet``."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=METRICS_SCHEMA)


class HopsLog:
    """What crossed each edge, interval by interval.

    Args:
        interval_s: seconds that a row covers.
        before: rows of the run so far, where it goes on.
        account: the sums that they add up to.
    """

    def __init__(self, *, interval_s: float, before: pa.Table | None = None, account: Account | None = None) -> None:
        self._interval_s = interval_s
        self._interval = 0
        self._logged: list[EdgeSums] = [] if account is None else account.edges()
        self._counted: list[Histogram] = [] if account is None else account.durations()
        self._rows: list[_Row] = []
        # A long run has millions of rows, and as Python objects they weigh ten times what they do as columns.
        self._batches: list[pa.RecordBatch] = [] if before is None else _completed(before).to_batches()

    def fork(self) -> HopsLog:
        """A copy as it stands, which goes on by itself."""
        other = HopsLog(interval_s=self._interval_s)
        other._interval, other._logged, other._counted = self._interval, self._logged, self._counted
        other._rows, other._batches = list(self._rows), list(self._batches)
        return other

    def advance(self, elapsed_s: float, account: Account) -> None:
        """Tell the time, before each record that the account gets.

        Args:
            elapsed_s: seconds since the run's start; never less than at the last call.
            account: the sums before that record.
        """
        interval = int(elapsed_s // self._interval_s)
        if interval == self._interval:
            return
        edges, durations = account.edges(), account.durations()
        self._rows += self._changes(edges, durations)
        self._logged, self._counted = edges, durations
        self._interval = interval
        if len(self._rows) >= _BATCH_ROWS:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=HOPS_SCHEMA))
            self._rows = []

    def table(self, account: Account) -> pa.Table:
        """All rows so far, with those of the running interval; an edge has none for an interval without a change."""
        rows = [*self._rows, *self._changes(account.edges(), account.durations())]
        last = pa.RecordBatch.from_pylist(rows, schema=HOPS_SCHEMA)
        return pa.Table.from_batches([*self._batches, last], schema=HOPS_SCHEMA)

    def _changes(self, edges: list[EdgeSums], durations: list[Histogram]) -> list[_Row]:
        start_s = self._interval * self._interval_s
        before = self._logged or [EdgeSums(name=sums.name) for sums in edges]
        counted = self._counted or [Histogram() for _ in edges]
        rows: list[_Row] = []
        for then, now, earlier, taken in zip(before, edges, counted, durations, strict=True):
            changes = {name: getattr(now, name) - getattr(then, name) for name in (*HOPS_COUNTS, *HOPS_SECONDS)}
            if any(changes.values()):
                fresh = taken.since(earlier)
                quantiles = {name: fresh.quantile(share) for name, share in HOPS_QUANTILES.items()}
                rows.append({"start_s": start_s, "edge": now.name, **changes, **quantiles})
        return rows


def _completed(table: pa.Table) -> pa.Table:
    """Rows of a run that was begun before there were some columns have none."""
    for name in HOPS_SCHEMA.names:
        if name not in table.schema.names:
            table = table.append_column(name, pa.nulls(len(table), pa.float64()))
    return table.cast(HOPS_SCHEMA)
