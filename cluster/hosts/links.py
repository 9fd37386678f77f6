"""A bridge in namespaces of its own, and the links by which hosts hang on it.

The bridge is not in this machine's network, so addresses cannot collide with its own, nor with another fleet's. A
link's rate is a token bucket (tbf) at both its ends, so it holds for either direction; its delay is a user-space
forwarder (`delay`), since netem is missing from many kernels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts.namespaces import HostProcess, Namespaces

NETWORK = "10.77.0"
"""The first three bytes of every address; the last is the host's number plus one."""

DELAYED_MTU = 60_000
"""Bytes a packet, where a link has a delay: the forwarder works by the packet, and the network needs one size."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A host's link to the bridge, the same in both directions.

    Attributes:
        rate: as tc writes it (``100mbit``); none: as fast as the machine copies.
        burst: bytes that may pass at once, as tc writes them. 32 kB slowed bursty senders by half.
        delay_s: seconds each way. Two hosts with such a link each are twice that apart.
    """

    rate: str | None = None
    burst: str = "256kb"
    delay_s: float = 0.0

    def __str__(self) -> str:
        rate = f"{self.rate} (tbf, burst {self.burst})" if self.rate else "unlimited"
        return f"{rate}, {self.delay_s * 1000:g} ms each way"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Bytes that a host's interface has sent and received, headers included."""

    tx_bytes: int
    rx_bytes: int

    def __sub__(self, before: Counters) -> Counters:
        return Counters(tx_bytes=self.tx_bytes - before.tx_bytes, rx_bytes=self.rx_bytes - before.rx_bytes)


class Bridge:
    """What the hosts' links end at.

    Args:
        mtu: bytes a packet on every link, or None for the kernel's default (1,500).
    """

    def __init__(self, mtu: int | None) -> None:
        self._mtu = mtu
        self._namespaces = Namespaces("bridge", "mount -t proc proc /proc")
        self._forwarders: list[HostProcess] = []
        self._ip("link", "add", "bridge", "type", "bridge")
        self._ip("link", "set", "bridge", "up")

    def plug(self, host: Namespaces, index: int, link: Link) -> None:
        """Give a host its interface ``eth0``, with its address, rate and delay."""
        port = f"port{index}"
        if link.delay_s:
            self._delayed(host, port, link.delay_s)
        else:
            self._ip(*f"link add {port} type veth peer name eth0 netns {host.pid}".split())
        size = f"mtu {self._mtu}" if self._mtu else ""
        # No IPv6 address of its own accord: its neighbour discovery would be counted.
        host.network(*f"ip link set eth0 addrgenmode none {size} up".split())
        host.network(*f"ip addr add {address(index)}/24 dev eth0".split())
        self._ip(*f"link set {port} addrgenmode none {size} master bridge up".split())
        if link.rate:
            limit = f"root tbf rate {link.rate} burst {link.burst} latency 100ms".split()
            host.network("tc", "qdisc", "add", "dev", "eth0", *limit)
            self._namespaces.network("tc", "qdisc", "add", "dev", port, *limit)

    def cut(self, index: int) -> None:
        """Take a host's port off the bridge: both see their end up, and are told nothing."""
        self._ip(*f"link set port{index} nomaster".split())

    def mend(self, index: int) -> None:
        """Put it back."""
        self._ip(*f"link set port{index} master bridge".split())

    def close(self) -> None:
        """Take the bridge away, and what forwards to it."""
        self._namespaces.close()
        for process in self._forwarders:
            process.wait()

    def _delayed(self, host: Namespaces, port: str, delay_s: float) -> None:
        inner = f"{port}h"  # the end that moves into the host; the forwarder keeps it open
        command = [sys.executable, str(Path(__file__).with_name("delay.py")), port, inner, str(delay_s)]
        process = self._namespaces.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._forwarders.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the forwarder of {host.name} ended: {process.stderr.read().strip()}")
        self._ip(*f"link set {inner} netns {host.pid} name eth0".split())

    def _ip(self, *arguments: str) -> None:
        self._namespaces.network("ip", *arguments)


def address(index: int) -> str:
    """Of host ``index``."""
    return f"{NETWORK}.{index + 1}"


def counters(host: Namespaces) -> Counters:
    """What the host's interface has counted since it was made."""
    statistics = json.loads(host.network("ip", "-s", "-j", "link", "show", "eth0"))[0]["stats64"]
    return Counters(tx_bytes=statistics["tx"]["bytes"], rx_bytes=statistics["rx"]["bytes"])
