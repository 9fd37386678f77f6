"""The catalogue's own rules: names say what they measure and in which unit."""

from __future__ import annotations

from distblock.metrics.catalogue import CATALOGUE


def test_names_follow_prometheus():
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE) >= 18
    for metric in CATALOGUE:
        assert metric.name.startswith("distblock_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.removesuffix("_total").endswith(metric.unit)
        for unit in ("bytes", "seconds", "ratio"):
            assert (unit in metric.name.split("_")) == (metric.unit == unit)


def test_labels_are_few():
    for metric in CATALOGUE:
        assert metric.labels[0] == "run"
        assert metric.labels[1:2] in ((), ("stage",), ("edge",), ("kind",))
        assert len(metric.labels) <= 3
        assert metric.help.endswith(".")
