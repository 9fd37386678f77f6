"""Quantiles within the stated error of the true ones; counts and sums exact. Oracle: numpy over all values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from distblock.metrics.histogram import ACCURACY, Histogram

RANDOM = np.random.default_rng(0)
VALUES = {
    "hops": RANDOM.lognormal(mean=-6, sigma=1.5, size=20_000),
    "one": np.array([0.25]),
    "equal": np.full(100, 3e-4),
    "with a tail": np.concatenate([RANDOM.uniform(1e-3, 2e-3, 9_990), RANDOM.uniform(5, 50, 10)]),
}


def filled(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(float(value))
    return histogram


@pytest.mark.parametrize("name", VALUES)
def test_quantiles_are_near_the_true_ones(name: str):
    values = VALUES[name]
    histogram = filled(values)
    for share in (0.01, 0.5, 0.99, 0.999, 1.0):
        true = np.quantile(values, share, method="inverted_cdf")
        assert histogram.quantile(share) == pytest.approx(true, rel=ACCURACY * 1.001)
    assert (histogram.count, histogram.min_s, histogram.max_s) == (len(values), values.min(), values.max())
    assert histogram.sum_s / histogram.count * histogram.count == pytest.approx(math.fsum(values), rel=1e-12)


@pytest.mark.parametrize("name", VALUES)
def test_the_straggler_share_is_what_lies_above_the_median(name: str):
    values = VALUES[name]
    median = np.quantile(values, 0.5, method="inverted_cdf")
    true = np.clip(values - median, 0, None).sum() / values.sum()
    assert filled(values).straggler_share() == pytest.approx(true, abs=2 * ACCURACY)


def test_parts_add_up_to_the_whole():
    values = VALUES["hops"]
    whole, parts = filled(values), Histogram()
    for part in np.split(values, 4):
        parts.merge(filled(part))
    assert parts.buckets == whole.buckets
    assert (parts.count, parts.min_s, parts.max_s) == (whole.count, whole.min_s, whole.max_s)
    assert parts.sum_s == pytest.approx(whole.sum_s, rel=1e-12)


@pytest.mark.parametrize("values", [VALUES["hops"], np.array([])], ids=["many", "none"])
def test_it_comes_back_from_json(values: np.ndarray):
    histogram = filled(values)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


def test_none_has_no_quantile():
    assert Histogram().quantile(0.5) is None
    assert Histogram().straggler_share() is None


def test_nothing_is_too_short():
    assert filled(np.zeros(3)).quantile(0.5) == 0.0
