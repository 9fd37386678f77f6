"""docker-compose.yml by the Compose specification's own schema, and what we promise of it beyond that."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml
from provisioned import PROMETHEUS, ROOT
from ray_commands import parsed_start

from distblock.config import make_config
from distblock.flags import read_settings
from distblock.version import __version__

FILES = ("docker-compose.yml", "deploy/docker-compose.cuda.yml")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / FILES[0]).read_text())["services"]
OURS = ("head", "worker", "demo")


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_compose_file(name: str):
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    content = yaml.safe_load((ROOT / name).read_text())
    jsonschema.validate(content, schema)
    content["services"]["worker"]["priviledged"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_there_is_what_the_docs_say():
    assert list(SERVICES) == ["head", "worker", "demo", "prometheus", "grafana"]
    assert SERVICES["demo"]["profiles"] == ["demo"]
    assert all("profiles" not in service for name, service in SERVICES.items() if name != "demo")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str):
    service = SERVICES[name]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert "network_mode" not in service
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), "no version"


def test_the_image_is_of_this_version():
    assert {SERVICES[name]["image"] for name in OURS} == {f"distblock:{__version__}-${{DEVICE:-cpu}}"}


def test_who_stays_is_watched():
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (service["restart"] == "unless-stopped") == (name != "demo")


def test_workers_can_be_scaled():
    worker = SERVICES["worker"]
    assert not {"ports", "container_name", "hostname"} & set(worker)


def test_the_token_is_on_and_in_no_file():
    for name in OURS:
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{SERVICES[name]['secrets'][0]}"
    secrets = yaml.safe_load((ROOT / FILES[0]).read_text())["secrets"]
    assert all(secret["file"].startswith("./deploy/secrets/") for secret in secrets.values())
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["head", "worker"])
def test_ray_takes_the_command(name: str):
    options = parsed_start(SERVICES[name]["command"])
    assert options["head"] == (name == "head")
    assert options["block"]
    # The store lies in shared memory, and Ray warns, and slows down, where it does not fit.
    assert options["object_store_memory"] < int(SERVICES[name]["shm_size"].removesuffix("gb")) * 2**30


def test_the_demo_is_a_run():
    command = SERVICES["demo"]["command"]
    assert command[: command.index("--")] == ["distblock", "submit", "--address", "http://head:8265", "--follow"]
    config = make_config(read_settings(command[command.index("--") + 1 :]))
    # Prometheus is in another container, and looks for the exporter where targets-compose.yml says.
    [target] = yaml.safe_load((PROMETHEUS / "targets-compose.yml").read_text())
    assert target["targets"] == [f"head:{config.metrics.port}"]
    assert config.metrics.host == "0.0.0.0"
    needed = config.data.workers + 3  # the default network has three blocks
    assert parsed_start(SERVICES["worker"]["command"])["num_cpus"] == needed


def test_what_is_mounted_is_there():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert (ROOT / volume["source"]).exists()
                assert volume["read_only"]
