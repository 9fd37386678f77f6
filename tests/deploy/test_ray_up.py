"""cluster/*.yaml by what ``ray up`` itself checks before it starts a machine."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from provisioned import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray_commands import parsed_start, words_of

from distblock.version import __version__

FILES = ("aws", "gcp", "on-premise")


def content_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str):
    prepared = prepare_config(copy.deepcopy(content_of(name)))
    validate_config(prepared)
    # Nothing of Ray's defaults, which would install another Ray over the image's.
    assert prepared["setup_commands"] == prepared["initialization_commands"] == []
    assert prepared["docker"]["image"] == f"REGISTRY/distblock:{__version__}-cuda"
    broken = content_of(name) | {"idle_timeout": 5}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_have_cpu_and_gpu_nodes(name: str):
    types = content_of(name)["available_node_types"]
    assert list(types) == ["head", "gpu", "cpu"]
    assert ["GPU" in each["resources"] for each in types.values()] == [False, True, False]
    assert types["head"]["max_workers"] == 0
    assert all(each["min_workers"] == 0 for each in types.values())
    assert sum(each["max_workers"] for each in types.values()) == content_of(name)["max_workers"]


def test_all_hosts_are_started():
    content = content_of("on-premise")
    hosts = content["provider"]["worker_ips"]
    assert content["min_workers"] == content["max_workers"] == len(set(hosts))
    assert content["provider"]["head_ip"] not in hosts


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_start_commands_with_the_token(name: str):
    content = content_of(name)
    for who in ("head", "worker"):
        first, second = content[f"{who}_start_ray_commands"]
        assert first == "ray stop"
        assert second.startswith("RAY_AUTH_MODE=token ")
        assert parsed_start(words_of(second))["head"] == (who == "head")
    assert "/home/distblock/.ray/auth_token" in content["file_mounts"]
    # The job API of a cloud's head is reached through SSH alone.
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][1]
