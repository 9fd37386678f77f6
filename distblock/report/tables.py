"""Tables of a finished run for the terminal, from the keys of ``summary.json``.

At most 100 columns wide, so that a log shows them as a terminal does; units are those that people read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from distblock.metrics.accounting import PassSums

MISSING = "-"
"""Shown where a run did not measure something."""


def stages_table(summary: Mapping[str, Any]) -> Table:
    """Accuracy by depth, and what each stage cost; the stage chosen on validation data is marked with a star."""
    table = _table(
        "Stages",
        left=("stage", "blocks"),
        right=(
            "para-\nmeters",
            "train\nloss",
            "validation\naccuracy",
            "test\naccuracy",
            "transport\ncost",
            "compute",
            "idle",
            "peak\nmemory",
        ),
    )
    for stage in summary["stages"]:
        is_best = stage["index"] == summary["best_stage"]
        table.add_row(
            f"{stage['index']} *" if is_best else str(stage["index"]),
            _range(stage["blocks"]),
            count(stage["num_parameters"]),
            decimal(stage["train_loss"]),
            percent(stage["val_accuracy"]),
            percent(stage["test_accuracy"]),
            number(stage["transport_cost"]),
            duration(stage["compute_s"]),
            duration(stage["idle_s"]),
            size(stage["peak_memory_bytes"]),
            style="bold" if is_best else None,
        )
    table.caption = "* chosen by its validation accuracy"
    return table


def edges_table(summary: Mapping[str, Any]) -> Table:
    """What crossed each edge, and what that cost, summed over the run; the edge from the data comes first."""
    table = _table(
        "Edges",
        left=("edge", "path"),
        right=(
            "hops",
            "payload",
            "wire",
            "encode",
            "put",
            "fetch",
            "exposed",
            "back-\npressure",
            "bandwidth",
        ),
    )
    for edge in [summary["data_edge"], *summary["edges"]]:
        seconds = ("encode_s", "put_s", "fetch_s", "exposed_s", "backpressure_s")
        table.add_row(
            edge["name"],
            _path(edge),
            count(edge["hops"]),
            size(edge["payload_bytes"]),
            size(edge["wire_bytes"]),
            *(duration(edge[key]) for key in seconds),
            f"{size(edge['wire_bytes'] / edge['fetch_s'])}/s" if edge["wire_bytes"] and edge["fetch_s"] else MISSING,
        )
    table.caption = "sums over the run; exposed: fetch and decode while the receiver idled; bandwidth: wire / fetch"
    edges = [summary["data_edge"], *summary["edges"]]
    table.caption += _line_shares(edges) + _past_store(edges)
    return table


def hops_table(summary: Mapping[str, Any]) -> Table:
    """What hops took by edge and size class; edges within one worker have none."""
    table = _table(
        "Hops by size",
        left=("edge",),
        right=("up to", "hops", "bytes", "min", "p50", "p99", "p99.9", "bandwidth", "of memcpy", "stragglers"),
    )
    for edge in [summary["data_edge"], *summary["edges"]]:
        for each in edge["sizes"]:
            table.add_row(
                edge["name"],
                binary_size(each["upto_bytes"]),
                count(each["hops"]),
                size(each["wire_bytes"]),
                *(duration(each[key]) for key in ("min_s", "p50_s", "p99_s", "p999_s")),
                f"{size(each['bandwidth_bytes_per_s'])}/s",
                percent(each["memcpy_share"]),
                percent(each["straggler_share"]),
            )
    table.caption = (
        "a hop's own work at both ends: encode, put, fetch, decode; bandwidth: bytes over that; quantiles\n"
        "within 1 %; stragglers: share of these seconds beyond the median hop's"
    )
    return table


def evaluation_table(passes: Sequence[PassSums], *, part: str, best_stage: int) -> Table:
    """Every stage measured again on a part of the data; the stage that the run chose is marked with a star."""
    table = _table(f"Stages on the {part} part", left=("stage",), right=("loss", "accuracy", "transport\ncost"))
    for stage, sums in enumerate(passes):
        name = f"{stage} *" if stage == best_stage else str(stage)
        table.add_row(name, decimal(sums.loss), percent(sums.accuracy), number(sums.transport_cost))
    return table


def number(value: float | None) -> str:
    """Three significant digits: ``0.0123``, ``1.23``."""
    return MISSING if value is None else f"{value:#.3g}"


def decimal(value: float | None) -> str:
    """Three decimals: ``0.012``, ``1.235``."""
    return MISSING if value is None else f"{value:.3f}"


def percent(ratio: float | None) -> str:
    """``0.8125`` as ``81.2 %``."""
    return MISSING if ratio is None else f"{100 * ratio:.1f} %"


def count(value: float) -> str:
    """``11181642`` as ``11.2 M``; exact below 10,000."""
    return f"{value:,}" if value < 10_000 else _scaled(value, ("", " k", " M", " G", " T"))


def size(num_bytes: float) -> str:
    """``1234567`` as ``1.23 MB``; powers of 1000."""
    return _scaled(num_bytes, (" B", " kB", " MB", " GB", " TB"))


def binary_size(num_bytes: int) -> str:
    """``65536`` as ``64 KiB``: for powers of two."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:g} {unit}"
    return f"{num_bytes} B"


def duration(seconds: float) -> str:
    """``0.034`` as ``34 ms``; two digits, but all of those before the point."""
    if seconds == 0:
        return "0 s"
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms"), (9999.5, 1, "s")):
        if seconds < limit:
            return f"{_two_digits(seconds * factor)} {unit}"
    return f"{_two_digits(seconds / 3600)} h"


def _range(blocks: Sequence[str]) -> str:
    """First and last of a stage's blocks."""
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]}..{blocks[-1]}"


def _path(edge: Mapping[str, Any]) -> str:
    if edge["transport"] in ("in process", "cache file"):
        return edge["transport"]
    if not edge["cross_node_hops"]:
        return "same node"
    return "mixed" if edge["same_node_hops"] else "cross node"


def _line_shares(edges: Sequence[Mapping[str, Any]]) -> str:
    """How much of their lines the edges between hosts took, where that was measured."""
    known = [edge for edge in edges if edge.get("line_share") is not None]
    shares = ", ".join(f"{edge['name']} {percent(edge['line_share'])}" for edge in known)
    return f"\nshare of the measured line rate: {shares}" if known else ""


def _past_store(edges: Sequence[Mapping[str, Any]]) -> str:
    """How much went from worker to worker."""
    known = [edge for edge in edges if edge.get("past_store_hops")]
    shares = ", ".join(f"{edge['name']} {percent(edge['past_store_hops'] / edge['hops'])}" for edge in known)
    return f"\nhops from worker to worker, past the object store: {shares}" if known else ""


def _table(title: str, *, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold", max_width=18)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _scaled(value: float, units: Sequence[str]) -> str:
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value /= 1000
        step += 1
    return f"{_three_digits(value)}{units[step]}"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _three_digits(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
