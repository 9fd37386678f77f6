"""Transfers between threads, and the interface on a route; the kernel's own tools are the oracle."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from distblock.runtime import transfers
from distblock.runtime.interfaces import Interface, interface_to, with_address
from distblock.runtime.transfers import Sample, Sender, receive, settled_rate

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfers, "TRANSFER_BYTES", 8 * MEGABYTE)


def knock(sender: Sender, shown: bytes) -> bytes:
    """Connect and show something; what comes back before the connection is closed."""
    with socket.create_connection((sender.door.address, sender.door.port)) as line:
        line.sendall(shown)
        line.shutdown(socket.SHUT_WR)
        try:
            return line.recv(1)
        except ConnectionResetError:
            return b""


def test_a_transfer_has_a_rate_and_leaves_nothing_open():
    sender = Sender("127.0.0.1")
    with ThreadPoolExecutor(1) as other:
        sending = other.submit(sender.send)
        assert (receive(sender.door) or 0) > 0
        sending.result()
    with pytest.raises(ConnectionRefusedError):
        receive(sender.door)


def test_it_listens_at_its_own_address_alone():
    sender = Sender("127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", sender.door.port))
    with ThreadPoolExecutor(1) as other:
        sending = other.submit(sender.send)
        receive(sender.door)
        sending.result()


def test_whoever_lacks_the_token_is_turned_away():
    sender = Sender("127.0.0.1")
    with ThreadPoolExecutor(1) as other:
        sending = other.submit(sender.send)
        assert knock(sender, b"") == b""
        assert knock(sender, bytes(32)) == b""
        assert knock(sender, sender.door.token[:-1]) == b""
        assert not sending.done()
        assert (receive(sender.door) or 0) > 0
        sending.result()
    assert Sender("127.0.0.1").door.token != sender.door.token


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfers, "CONNECT_S", 0.05)
    sender = Sender("127.0.0.1")
    with pytest.raises(TimeoutError):
        sender.send()
    with pytest.raises(ConnectionRefusedError):
        receive(sender.door)


def test_an_address_of_another_host():
    with pytest.raises(OSError, match="assign"):
        Sender("192.0.2.77")


def test_the_latter_half_counts():
    # A first burst of 1000 bytes, then 100 bytes a second.
    samples = [Sample(s=float(second), num_bytes=1000 + 100 * second) for second in range(11)]
    assert settled_rate(samples) == 100
    assert settled_rate([Sample(s=0.0, num_bytes=10), Sample(s=4.0, num_bytes=50)]) == 10
    assert settled_rate([Sample(s=0.0, num_bytes=10)]) is None
    assert settled_rate([]) is None


def test_an_interface_is_found_by_its_address():
    interfaces = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.2", "fe80::1%eth0", "02:fc:00:00:00:01"]}
    assert with_address("10.0.0.2", interfaces) == "eth0"
    assert with_address("fe80::1", interfaces) == "eth0"
    assert with_address("10.0.0.3", interfaces) is None


def test_the_loopback_interface():
    found = interface_to("127.0.0.1")
    assert found.is_loopback
    assert found.name is not None
    assert found.name in {name for _, name in socket.if_nameindex()}


def test_where_no_route_leads(monkeypatch: pytest.MonkeyPatch):
    def refuses(*_: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuses)
    assert interface_to("192.0.2.1") == Interface(name=None)
