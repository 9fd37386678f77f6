"""The edges in ``summary.json``: what crossed each, what that cost, by size of a hop too, and what it lay on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distblock.messages import Inputs, Line
from distblock.metrics.accounting import Account
from distblock.metrics.histogram import Histogram
from distblock.metrics.hops import EdgeSums, SizeClass
from distblock.metrics.staleness import StalenessSums

QUANTILES = {"p50_s": 0.5, "p99_s": 0.99, "p999_s": 0.999}
"""Of a hop's own seconds."""


def edge_figures(
    account: Account,
    lines: Sequence[Line],
    *,
    wall_s: float,
    inputs: Inputs | None = None,
    memcpy_bytes_per_s: float | None = None,
) -> list[dict[str, Any]]:
    """All edges, the one from the data first.

    Args:
        account: the run's sums.
        lines: what the edges between two hosts lay on.
        wall_s: seconds from the first microbatch to the last.
        inputs: what stages trained on, where they train one by one.
        memcpy_bytes_per_s: what copying in memory makes on the slowest host.
    """
    line_of = {line.edge: line for line in lines}
    found = []
    for edge, sums in enumerate(account.edges()):
        figures = {
            **_sums(sums),
            **_hops(account.sizes(edge), memcpy_bytes_per_s=None if sums.cross_node_hops else memcpy_bytes_per_s),
            **_age(account.staleness(edge), drops=account.drops(edge)),
            **_line(line_of.get(edge), sums, wall_s=wall_s),
        }
        if edge and inputs == "cache":
            figures["transport"] = "cache file"
        found.append(figures)
    return found


def _sums(sums: EdgeSums) -> dict[str, Any]:
    return {
        "name": sums.name,
        "transport": _transport(sums),
        "hops": sums.hops,
        "same_node_hops": sums.same_node_hops,
        "cross_node_hops": sums.cross_node_hops,
        "past_store_hops": sums.past_store_hops,
        "payload_bytes": sums.payload_bytes,
        "wire_bytes": sums.wire_bytes,
        "encode_s": sums.encode_s,
        "put_s": sums.put_s,
        "fetch_s": sums.fetch_s,
        "decode_s": sums.decode_s,
        "exposed_s": sums.exposed_s,
        "encode_in_turn_s": sums.encode_in_turn_s,
        "decode_in_turn_s": sums.decode_in_turn_s,
        "overlapped_s": sums.overlapped_s,
        "backpressure_s": sums.backpressure_s,
    }


def _transport(sums: EdgeSums) -> str:
    if sums.in_process:
        return "in process"
    if not sums.past_store_hops:
        return "object store"
    return "worker to worker" if sums.past_store_hops == sums.hops else "worker to worker, object store"


def _hops(sizes: Sequence[SizeClass], *, memcpy_bytes_per_s: float | None) -> dict[str, Any]:
    """Of all sizes together, then of each."""
    seconds, wire_bytes = Histogram(), 0
    for each in sizes:
        seconds.merge(each.seconds)
        wire_bytes += each.wire_bytes
    together = _own(seconds, wire_bytes, memcpy_bytes_per_s=memcpy_bytes_per_s)
    return {
        **{f"hop_{name}": value for name, value in together.items()},
        "sizes": [
            {
                "upto_bytes": each.upto_bytes,
                "hops": each.seconds.count,
                "wire_bytes": each.wire_bytes,
                **_own(each.seconds, each.wire_bytes, memcpy_bytes_per_s=memcpy_bytes_per_s),
            }
            for each in sizes
        ],
    }


def _own(seconds: Histogram, wire_bytes: int, *, memcpy_bytes_per_s: float | None) -> dict[str, float | None]:
    """Of hops' own work at both ends, and what it comes to."""
    bandwidth = wire_bytes / seconds.sum_s if seconds.sum_s else None
    return {
        "sum_s": seconds.sum_s,
        "min_s": seconds.min_s if seconds.count else None,
        **{name: seconds.quantile(share) for name, share in QUANTILES.items()},
        "max_s": seconds.max_s if seconds.count else None,
        "straggler_share": seconds.straggler_share(),
        "bandwidth_bytes_per_s": bandwidth,
        "memcpy_share": bandwidth / memcpy_bytes_per_s if bandwidth and memcpy_bytes_per_s else None,
    }


def _age(staleness: StalenessSums, *, drops: int) -> dict[str, Any]:
    return {"staleness_mean": staleness.mean, "staleness_max": staleness.largest, "drops": drops}


def _line(line: Line | None, sums: EdgeSums, *, wall_s: float) -> dict[str, Any]:
    """What the edge lay on, and which share of it its traffic took; None where both ends were on one host."""
    return {
        "sender_node": line and line.sender,
        "receiver_node": line and line.receiver,
        "sender_interface": line and line.sender_interface,
        "receiver_interface": line and line.receiver_interface,
        "sender_speed_bytes_per_s": line and line.sender_speed_bytes_per_s,
        "receiver_speed_bytes_per_s": line and line.receiver_speed_bytes_per_s,
        "line_rate_bytes_per_s": line and line.rate_bytes_per_s,
        "line_share": line and line_share(line, sums, wall_s=wall_s),
    }


def line_share(line: Line, sums: EdgeSums, *, wall_s: float) -> float | None:
    """What crossed the network on an edge, over what its line could have carried meanwhile; None: that is not known."""
    if line.rate_bytes_per_s is None or not sums.hops:
        return None
    crossed_bytes = sums.wire_bytes * sums.cross_node_hops / sums.hops
    return crossed_bytes / (wall_s * line.rate_bytes_per_s)
