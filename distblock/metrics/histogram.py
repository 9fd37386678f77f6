"""How long hops took, in little memory: counts by buckets whose borders grow by a constant factor.

A run has millions of hops, and their p99.9 needs all of them: a sample of them would miss just the rare ones. Buckets
of constant relative width keep every quantile within `ACCURACY` of the true one, whatever the scale, and add up
exactly; count, sum, least and greatest are exact by themselves.

Source: Masson, Rim, Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees".
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

ACCURACY = 0.01
"""Relative error of a quantile at most."""

LEAST_S = 1e-9
"""Seconds below which all are one: no clock tells them apart."""

_GROWTH = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GROWTH = math.log(_GROWTH)


@dataclass(kw_only=True, slots=True)
class Histogram:
    """Of seconds.

    Attributes:
        count: how many.
        sum_s, min_s, max_s: of them, exact; min and max of none are inf and 0.
        buckets: how many by bucket.
    """

    count: int = 0
    sum_s: float = 0.0
    min_s: float = math.inf
    max_s: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.sum_s += seconds
        self.min_s = min(self.min_s, seconds)
        self.max_s = max(self.max_s, seconds)
        bucket = _bucket(seconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Count all that another has counted."""
        self.count += other.count
        self.sum_s += other.sum_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def since(self, earlier: Histogram) -> Histogram:
        """What has been counted since it was as ``earlier``; least and greatest within `ACCURACY`."""
        buckets = {each: count - earlier.buckets.get(each, 0) for each, count in self.buckets.items()}
        buckets = {each: count for each, count in buckets.items() if count}
        return Histogram(
            count=self.count - earlier.count,
            sum_s=self.sum_s - earlier.sum_s,
            min_s=_middle(min(buckets)) if buckets else math.inf,
            max_s=_middle(max(buckets)) if buckets else 0.0,
            buckets=buckets,
        )

    def upto(self, borders: Iterable[int]) -> list[int]:
        """How many lie in each of these buckets and those below it: of no more than its `border_s` seconds."""
        buckets = sorted(self.buckets)
        counts = list(accumulate((self.buckets[bucket] for bucket in buckets), initial=0))
        return [counts[bisect_right(buckets, border)] for border in borders]

    def quantile(self, share: float) -> float | None:
        """Seconds that a share of them do not exceed, within `ACCURACY`; None of none.

        Args:
            share: 0 to 1.
        """
        if not self.count:
            return None
        rank, passed = math.ceil(share * self.count), 0
        for bucket in sorted(self.buckets):
            passed += self.buckets[bucket]
            if passed >= rank:
                return min(max(_middle(bucket), self.min_s), self.max_s)
        raise AssertionError("buckets hold as many as were counted")

    def straggler_share(self) -> float | None:
        """Seconds that the slower half took beyond the median, over all seconds, within twice `ACCURACY`: what could be
        saved if none were slower than the median. None of none.

        Source: after Lin et al. 2025, "Understanding Stragglers in Large Model Training Using What-if Analysis",
        arXiv:2505.05713, which takes the ideal for each operation to be the mean or median over its likes.
        """
        median_s = self.quantile(0.5)
        if median_s is None or not self.sum_s:
            return None
        return sum(count * max(0.0, _middle(each) - median_s) for each, count in self.buckets.items()) / self.sum_s

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists."""
        return {
            "count": self.count,
            "sum_s": self.sum_s,
            "min_s": self.min_s if self.count else None,
            "max_s": self.max_s,
            "buckets": sorted(self.buckets.items()),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Histogram:
        """Back from there."""
        least_s = math.inf if content["min_s"] is None else content["min_s"]
        buckets = dict(content["buckets"])
        return cls(**{**content, "min_s": least_s, "buckets": buckets})


def nearest_border(seconds: float) -> int:
    """The bucket whose upper border is nearest to so many seconds, as a ratio."""
    return round(math.log(seconds) / _LOG_GROWTH)


def border_s(bucket: int) -> float:
    """Seconds at a bucket's upper border."""
    return _GROWTH**bucket


def _bucket(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, LEAST_S)) / _LOG_GROWTH)


def _middle(bucket: int) -> float:
    """Seconds that are as near to one border of a bucket as to the other, as ratios."""
    return 2 * _GROWTH**bucket / (_GROWTH + 1)
