"""Dashboards and their provisioning hang together. No Grafana is at hand: it reads these files in the compose file."""

from __future__ import annotations

from typing import Any

import provisioned
import pytest
import yaml
from provisioned import GRAFANA

SOURCE = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
DASHBOARDS = provisioned.dashboards()


@pytest.fixture(params=DASHBOARDS)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DASHBOARDS[request.param]


def test_there_is_a_dashboard_for_each_question():
    assert list(DASHBOARDS) == ["communication.json", "failures.json", "training.json"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 3


def test_panels_ask_the_provisioned_source(dashboard):
    source = {"type": SOURCE["type"], "uid": SOURCE["uid"]}
    assert all(panel["datasource"] == source for panel in dashboard["panels"])
    [variable] = dashboard["templating"]["list"]
    assert (variable["name"], variable["datasource"]) == ("run", source)


def test_panels_are_complete_and_apart(dashboard):
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["targets"]
        assert all(target["legendFormat"] for target in panel["targets"])
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_dashboards_are_read_from_where_compose_puts_them():
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "distblock.yml").read_text())["providers"]
    grafana = yaml.safe_load((provisioned.ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    targets = {volume["target"]: volume["source"] for volume in grafana["volumes"] if volume["type"] == "bind"}
    assert targets[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert targets["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
