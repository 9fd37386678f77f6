"""Prometheus' own checker on our files; what the expressions name is in the catalogue."""

from __future__ import annotations

import shutil
import subprocess

import provisioned
import pytest
import yaml
from provisioned import PROMETHEUS, Expression

from distblock.metrics.catalogue import CATALOGUE, Metric

OF_RAY = {
    "ray_actors",
    "ray_object_manager_bytes",
    "ray_object_store_available_memory",
    "ray_object_store_memory",
}
"""What we ask Ray's exporter for; test_scraped_run.py shows that Ray 2.60 has it."""


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_agrees(arguments: list[str]):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_made_to_fire_and_to_stay_silent():
    groups = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    told = [
        (test["alertname"], bool(test["exp_alerts"])) for group in groups for test in group.get("alert_rule_test", [])
    ]
    for alert in provisioned.alerts():
        assert (alert.where, True) in told
        assert (alert.where, False) in told


def test_every_alert_says_what_to_look_at():
    for rule in provisioned.rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in ("warning", "critical")
        texts = [rule["annotations"][key] for key in ("summary", "description")]
        # A store belongs to a node, and may hold several runs.
        subjects = ["NodeAddress"] if rule["alert"].startswith("Ray") else ["run"]
        for text in texts:
            assert all(f"$labels.{subject}" in text for subject in subjects)
    by_name = {rule.get("alert"): str(rule.get("annotations")) for rule in provisioned.rules()}
    assert "$labels.stage" in by_name["DistblockStageStalled"]
    assert "$labels.edge" in by_name["DistblockBackpressureHigh"]


def names(metric: Metric) -> tuple[str, ...]:
    """Of its series: a histogram has three."""
    suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
    return tuple(metric.name + suffix for suffix in suffixes)


@pytest.mark.parametrize(
    "expression",
    [*provisioned.recorded(), *provisioned.alerts(), *provisioned.panels()],
    ids=lambda expression: expression.where,
)
def test_expressions_name_what_there_is(expression: Expression):
    known = (
        {name for metric in CATALOGUE for name in names(metric)}
        | {rule.get("record") for rule in provisioned.rules()}
        | OF_RAY
    )
    assert expression.names
    assert expression.names <= known


def test_names_are_found():
    """The finder itself, on an expression of every kind it must see through."""
    text = 'a:distblock_b:ratio{run="$run"} / on (run) sum by (distblock_no) (rate(ray_c{x="distblock_d"}[1m]))'
    assert Expression(where="", text=text).names == {"a:distblock_b:ratio", "ray_c"}


def test_every_metric_is_shown():
    """Directly, or through a recorded series."""
    through = {rule.where: rule.names for rule in provisioned.recorded()}
    shown = {name for panel in provisioned.panels() for name in panel.names}
    while more := {name for known in shown for name in through.get(known, ())} - shown:
        shown |= more
    assert [metric.name for metric in CATALOGUE if not shown & {*names(metric)}] == []
