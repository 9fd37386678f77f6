"""What deploy/ asks Prometheus for: every expression of the rules and of the dashboards, and the names in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One PromQL expression, and where it stands."""

    where: str
    text: str

    def of_run(self, run: str) -> str:
        """With Grafana's variables filled in."""
        return self.text.replace("$run", run).replace("$__rate_interval", "1m")

    @property
    def names(self) -> set[str]:
        """Names of metrics and of recorded series, without what stands in strings, labels and ``by`` clauses."""
        bare = re.sub(r'"[^"]*"', '""', self.text)
        bare = re.sub(r"\{[^}]*\}|\b(by|on|group_left|without)\s*\([^)]*\)", " ", bare)
        return set(re.findall(r"\b(?:\w+:)?(?:distblock|ray)_\w+(?::\w+)?", bare))


def rules() -> list[dict[str, Any]]:
    """Recording and alert rules, in order."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """Dashboards by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def recorded() -> Iterator[Expression]:
    """What the recording rules compute."""
    for rule in rules():
        if "record" in rule:
            yield Expression(where=rule["record"], text=rule["expr"])


def alerts() -> Iterator[Expression]:
    """What the alerts compare, without the bound: an alert's own expression is empty until it fires."""
    for rule in rules():
        if "alert" in rule:
            compared = re.fullmatch(r"(.+) (?:>|==) [\d.]+", rule["expr"].strip())
            assert compared is not None, f"{rule['alert']} compares nothing with a bound: {rule['expr']}"
            yield Expression(where=rule["alert"], text=compared[1])


def panels() -> Iterator[Expression]:
    """What the dashboards show."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield Expression(where=f"{name}: {panel['title']}", text=target["expr"])
