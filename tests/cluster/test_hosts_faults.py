"""Hosts with Ray nodes: commands on them, and what can happen to them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.hosts import Hosts, HostSettings, hosts, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "300",
    "RAY_health_check_failure_threshold": "3",
}
"""A node's death surfaces in about a second, instead of 15."""

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=2)"
"""To a port at which nobody listens: refused at once if the host is reached."""

NODES = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps([[node["NodeManagerAddress"], node["Alive"], node["Resources"]] for node in ray.nodes()]))
"""

WAIT = """
import sys, threading, ray
ray.init(log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[1]):
    threading.Event().wait(0.1)
"""


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    second = HostSettings(cpus=2, resources={"special": 1}, environment={"MARK": "of host 1"})
    with hosts([1, second], environment=SOON) as fleet:
        yield fleet


def python(fleet: Hosts, code: str, *arguments: str, host: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return fleet.run(command, host=host, capture_output=True, timeout_s=120)


def alive(fleet: Hosts) -> dict[str, float]:
    """CPUs of the living nodes by their addresses, as Ray tells it on the head."""
    done = python(fleet, NODES)
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout.splitlines()[-1])
    return {address: resources["CPU"] for address, living, resources in nodes if living}


def test_each_host_is_a_node_of_one_cluster(two: Hosts):
    assert alive(two) == {"10.77.0.1": 1, "10.77.0.2": 2}


def test_resources_and_environment_of_one_host(two: Hosts):
    code = """
import os, ray
ray.init(log_to_driver=False, logging_level="ERROR")
mark = ray.remote(num_cpus=0, resources={"special": 1})(lambda: os.environ.get("MARK"))
print([os.environ.get("MARK"), ray.get(mark.remote())])
"""
    assert python(two, code).stdout == "[None, 'of host 1']\n"


def test_a_wrong_token_is_refused(two: Hosts):
    environment = {**two.environment(), "RAY_AUTH_TOKEN": "0" * 64}
    environment.pop("RAY_AUTH_TOKEN_PATH")
    done = two.run([sys.executable, "-c", NODES], env=environment, capture_output=True, timeout_s=120)
    assert done.returncode != 0
    assert "10.77.0.2" not in done.stdout


def test_status_and_output_of_a_command(two: Hosts):
    done = two.run(["sh", "-c", "hostname; echo $RAY_ADDRESS; exit 3"], host=1, capture_output=True)
    assert (done.returncode, done.stdout) == (3, "host1\n10.77.0.1:6379\n")


def test_a_signal_reaches_the_command(two: Hosts):
    process = two.popen(["sh", "-c", "trap 'exit 7' TERM; echo set; while :; do sleep 1; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "set\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 7


def test_a_cut_link_is_silent_until_it_is_mended(two: Hosts):
    assert "ConnectionRefusedError" in python(two, CONNECT, "10.77.0.2").stderr
    two.cut_link(1)
    assert "TimeoutError" in python(two, CONNECT, "10.77.0.2").stderr
    assert "TimeoutError" in python(two, CONNECT, "10.77.0.1", host=1).stderr
    two.mend_link(1)
    assert "ConnectionRefusedError" in python(two, CONNECT, "10.77.0.2").stderr


def test_a_killed_host_is_dead_to_ray_and_joins_again(two: Hosts):
    (two.path(1, "/tmp/kept")).write_text("on its disk")
    two.kill_host(1)
    assert two.processes(1) == []
    assert python(two, WAIT, "1").returncode == 0
    assert alive(two) == {"10.77.0.1": 1}
    two.start_again(1)
    assert python(two, WAIT, "2").returncode == 0
    assert alive(two) == {"10.77.0.1": 1, "10.77.0.2": 2}
    assert two.path(1, "/tmp/kept").read_text() == "on its disk"


def test_a_power_failure_is_silent_and_ray_finds_out(two: Hosts):
    two.cut_link(1)
    two.kill_host(1)
    assert python(two, WAIT, "1").returncode == 0
    two.mend_link(1)
    two.start_again(1)
    assert python(two, WAIT, "2").returncode == 0


@pytest.mark.further
def test_a_killed_head_begins_a_new_cluster(two: Hosts):
    two.kill_host(0)
    assert "ConnectionRefusedError" in python(two, CONNECT.replace("9", "6379"), "10.77.0.1", host=1).stderr
    two.start_again(0)
    assert alive(two) == {"10.77.0.1": 1}
    two.start_again(1)
    assert alive(two) == {"10.77.0.1": 1, "10.77.0.2": 2}
