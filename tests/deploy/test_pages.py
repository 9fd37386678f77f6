"""docs/metrics.md explains what the catalogue has, and nothing else; docs/deploying.md names what there is."""

from __future__ import annotations

import re
from typing import get_args

import provisioned
import pytest
from provisioned import ROOT

from distblock.messages import FailureKind
from distblock.metrics.catalogue import CATALOGUE, Metric

PAGE = (ROOT / "docs" / "metrics.md").read_text()
ROWS = {
    row[0].strip("`"): row[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for row in [[cell.strip() for cell in line.strip("|").split("|")]]
}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_every_metric_is_explained(metric: Metric):
    kind, labels, text = ROWS[metric.name]
    assert kind == metric.kind
    assert tuple(re.findall(r"`(\w+)`", labels)) == metric.labels[1:]
    assert len(text) > 20


def test_every_kind_of_failure_is_named():
    named = re.findall(r"`(\w+)`", ROWS["distblock_failures_total"][2])
    assert set(named) == set(get_args(FailureKind))


def test_recorded_series_and_alerts_are_explained():
    rules = {rule.get("record") or rule["alert"]: rule for rule in provisioned.rules()}
    assert set(ROWS) == set(rules) | {metric.name for metric in CATALOGUE}
    for name, rule in rules.items():
        if "alert" in rule:
            assert ROWS[name][0] == rule["labels"]["severity"]


def test_what_deploying_names_is_there():
    page = (ROOT / "docs" / "deploying.md").read_text()
    paths = [path for path in re.findall(r"(?<![\w/])(?:deploy|cluster)/[\w./-]+\w", page) if "secrets" not in path]
    assert len(set(paths)) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target
    alerts = {rule["alert"] for rule in provisioned.rules() if "alert" in rule}
    assert set(re.findall(r"`(Distblock\w+|Ray[A-Z]\w+Full)`", page)) <= alerts
