"""Means of few values, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; 0 for a single value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, 0.0
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of its interval of ratios, in percent; the mean alone of a single one."""
    mean, half = mean_and_interval(values)
    return f"{100 * mean:.2f}" + (f" +- {100 * half:.2f}" if len(values) > 1 else "")
