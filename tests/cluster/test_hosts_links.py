"""Addresses, rates, delays and counters of hosts without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cluster.hosts import Hosts, HostSettings, Link, hosts, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    while peer.recv(1 << 20):
        pass
    peer.sendall(b"k")
    peer.close()
"""
SEND = """
import json, socket, sys, time
def connect():
    start = time.perf_counter()
    return socket.create_connection((sys.argv[1], 5000)), time.perf_counter() - start
connect_s = min(connect()[1] for _ in range(5))
peer, _ = connect()
start = time.perf_counter()
peer.sendall(bytes(int(sys.argv[2])))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print(json.dumps({"connect_s": connect_s, "send_s": time.perf_counter() - start}))
"""
NUM_BYTES = 5_000_000
DELAY_S = 0.05


@contextmanager
def bare(links: Sequence[Link]) -> Iterator[Hosts]:
    with hosts([HostSettings(cpus=None, link=link) for link in links]) as fleet:
        yield fleet


def sent(fleet: Hosts, *, source: int, target: int) -> dict[str, float]:
    address = fleet.addresses[target]
    server = fleet.popen([sys.executable, "-c", SERVE, address], host=target, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    command = [sys.executable, "-c", SEND, address, str(NUM_BYTES)]
    done = fleet.run(command, host=source, capture_output=True, timeout_s=120)
    server.kill()
    server.communicate()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_three_hosts_at_addresses_of_their_own():
    with bare([Link()] * 3) as fleet:
        assert fleet.addresses == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
        for source, target in ((0, 1), (1, 2), (2, 0)):
            before = fleet.counters(source)
            sent(fleet, source=source, target=target)
            moved = fleet.counters(source) - before
            assert NUM_BYTES < moved.tx_bytes < 1.1 * NUM_BYTES
            assert moved.rx_bytes < 0.1 * NUM_BYTES
        names = fleet.run(["getent", "hosts", "host0", "host1", "host2"], host=1, capture_output=True).stdout
        assert names.split() == ["10.77.0.1", "host0", "10.77.0.2", "host1", "10.77.0.3", "host2"]


def test_two_fleets_do_not_meet():
    with bare([Link()] * 2) as one, bare([Link()]) as other:
        assert one.addresses[0] == other.addresses[0]
        command = [sys.executable, "-c", SEND, one.addresses[1], "0"]
        done = other.run(command, capture_output=True, timeout_s=120)
        assert "No route to host" in done.stderr


@pytest.mark.parametrize("source", [0, 1], ids=["out", "in"])
def test_a_rate_holds_in_both_directions(source: int):
    with bare([Link(rate="20mbit"), Link()]) as fleet:
        limited = sent(fleet, source=source, target=1 - source)["send_s"]
    with bare([Link(), Link()]) as fleet:
        unlimited = sent(fleet, source=source, target=1 - source)["send_s"]
    # What is beyond the burst cannot have come sooner, on however fast a machine.
    assert limited > (NUM_BYTES - 256 * 1024) * 8 / 20e6
    assert limited > 3 * unlimited


def test_a_delay_is_added_each_way():
    with bare([Link(delay_s=DELAY_S), Link()]) as fleet:
        connect_s = sent(fleet, source=1, target=0)["connect_s"]
        assert connect_s >= 2 * DELAY_S
        assert sent(fleet, source=0, target=1)["connect_s"] >= 2 * DELAY_S
    with bare([Link(), Link()]) as fleet:
        assert sent(fleet, source=1, target=0)["connect_s"] < connect_s / 2


def test_rate_and_delay_together():
    with bare([Link(rate="20mbit", delay_s=DELAY_S), Link(delay_s=DELAY_S)]) as fleet:
        times = sent(fleet, source=0, target=1)
    assert times["connect_s"] >= 4 * DELAY_S
    assert times["send_s"] > (NUM_BYTES - 256 * 1024) * 8 / 20e6


def test_a_rate_that_tc_does_not_know():
    with pytest.raises(RuntimeError, match=r"host0: tc .*quick"), bare([Link(rate="quick")]):
        pass
