"""What rounds come to: percentiles over all of them, ratios within each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distblock.bench.hops.relay import TRANSPORTS, Hop, Way
from distblock.bench.hops.rounds import Round, SizeRound
from distblock.report.tables import binary_size

STORE, PAST = TRANSPORTS
PLAIN: Way = "torch tensor"

INLINE_BYTES = 100 * 1024
"""Up to this many Ray sends a value inside calls, by way of the driver, so that a fetch hardly sees it."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of some seconds."""

    count: int
    min: float
    p50: float
    p99: float
    p999: float


def spread(seconds: Sequence[float]) -> Spread:
    """Percentiles; the highest are the largest where there are too few."""
    p50, p99, p999 = (float(np.percentile(seconds, q, method="higher")) for q in (50, 99, 99.9))
    return Spread(count=len(seconds), min=min(seconds), p50=p50, p99=p99, p999=p999)


def put_and_fetch_s(hops: Sequence[Hop]) -> list[float]:
    """Of each hop. What a call takes in and what it hands out are two activations of one size."""
    return [hop.put_s + hop.fetch_s for hop in hops if hop.fetch_s is not None]


def size_figures(rounds: Sequence[Round], size: int) -> dict[str, Any]:
    """One size over all rounds, for JSON and tables."""
    own = [each.sizes[size] for each in rounds]

    def of(pick: Callable[[SizeRound], Sequence[float | None]]) -> dict[str, float]:
        return asdict(spread([value for each in own for value in pick(each) if value is not None]))

    ways = {
        way: {
            "hop_s": of(lambda each, way=way: each.hops_s[way]),
            "put_and_fetch_s": of(lambda each, way=way: put_and_fetch_s(each.hops[way])),
            **{
                key: of(lambda each, way=way, key=key: [getattr(hop, key) for hop in each.hops[way]])
                for key in ("encode_s", "put_s", "fetch_s", "decode_s")
            },
        }
        for way in own[0].hops
    }
    return {
        "bytes": size,
        "ways": ways,
        "memcpy_fresh_s": of(lambda each: each.fresh_s),
        "memcpy_again_s": of(lambda each: each.again_s),
        "numpy_put_s": of(lambda each: each.numpy_s),
        "streamed_s": {
            way: {n: of(lambda each, way=way, n=n: [each.streamed_s[way][n]]) for n in numbers}
            for way, numbers in own[0].streamed_s.items()
        },
    }


def ratios(rounds: Sequence[Round], *, line_rate: float | None, where: str) -> dict[str, list[float]]:
    """By name, one a round; the names end with where it was measured.

    Args:
        rounds: them.
        line_rate: bytes a second of the line between two nodes.
        where: empty on one node.
    """
    found: dict[str, list[float]] = {}
    for each in rounds:
        for size, own in each.sizes.items():
            for name, value in _ratios(each, own, size, line_rate).items():
                found.setdefault(f"{name}, {binary_size(size)}{where}", []).append(value)
    return found


def _ratios(each: Round, own: SizeRound, size: int, line_rate: float | None) -> dict[str, float]:
    ours_s = statistics.median(put_and_fetch_s(own.hops[STORE]))
    found = {
        "(put + fetch) / memcpy": ours_s / statistics.median(own.fresh_s),
        "torch tensor / object store, put + fetch": statistics.median(put_and_fetch_s(own.hops[PLAIN])) / ours_s,
        "hop / empty call, one by one": statistics.median(own.hops_s[STORE]) / statistics.median(each.call_s),
    }
    for number, seconds in own.streamed_s[STORE].items():
        found[f"hop / empty call, in a stream, {number} a call"] = seconds / each.streamed_call_s
    for number, seconds in own.streamed_s[PAST].items():
        stored = own.streamed_s[STORE][number]
        found[f"object store / worker to worker, in a stream, {number} a call"] = stored / seconds
    past_s = statistics.median(put_and_fetch_s(own.hops[PAST]))
    found["object store / worker to worker, put + fetch"] = ours_s / past_s
    if line_rate is not None and size > INLINE_BYTES:
        for way, name in zip(TRANSPORTS, ("fetch / line rate", "fetch from worker to worker / line rate"), strict=True):
            fetch_s = statistics.median(hop.fetch_s for hop in own.hops[way] if hop.fetch_s is not None)
            found[name] = size / fetch_s / line_rate
    return found
