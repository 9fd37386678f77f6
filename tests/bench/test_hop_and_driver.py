"""The benchmarks of a hop and of the driver, on small numbers: what they measure is there, and it adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distblock.bench import driver, hop


@pytest.mark.usefixtures("shared_ray")
def test_a_hop_at_two_sizes(tmp_path: Path):
    path = tmp_path / "hop.json"
    hop.main(["--sizes", "1k", "64k", "--rounds", "2", "--per-call", "1", "2", "--output", str(path)])
    content = json.loads(path.read_text())
    assert {"hop / empty call, in a stream, 2 a call, 64 KiB", "(put + fetch) / memcpy, 64 KiB"} <= set(
        content["ratios"]
    )
    assert all(value > 0 for ratio in content["ratios"].values() for value in ratio["values"])


@pytest.mark.usefixtures("shared_ray")
def test_a_driver_with_two_and_three_stages(tmp_path: Path):
    path = tmp_path / "driver.json"
    driver.main(["--stages", "2", "3", "--calls", "30", "--rounds", "1", "--output", str(path)])
    content = json.loads(path.read_text())
    assert set(content["figures"]) == {"2", "3"}
    assert all(cost["cpu_s"] >= cost["loop_s"] > 0 for costs in content["figures"].values() for cost in costs)
