"""The network interface by which a host reaches another one, and what its kernel says of it.

A host with several network cards sends by whichever its routes name, and nobody is told: training over the slow one
works. The kernel knows: a connected UDP socket has the address that packets to the peer would leave from, and sends
nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

_BYTES_PER_S = 1_000_000 / 8
"""Of a megabit per second, in which the kernel states speeds."""

_ANY_PORT = 9


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A host's way to another.

    Attributes:
        name: the interface's; None: the kernel knows no way, or names no interface.
        speed_bytes_per_s: as the kernel states it; None: it does not.
        is_loopback: what is sent there never leaves the host.
    """

    name: str | None
    speed_bytes_per_s: float | None = None
    is_loopback: bool = False


def interface_to(peer: str) -> Interface:
    """This host's interface on the route to an address."""
    try:
        with socket.socket(family(peer), socket.SOCK_DGRAM) as probe:
            probe.connect((peer, _ANY_PORT))
            own = str(probe.getsockname()[0])
    except OSError:
        return Interface(name=None)
    name = with_address(own, {name: [each.address for each in of] for name, of in psutil.net_if_addrs().items()})
    stated = psutil.net_if_stats().get(name or "")
    return Interface(
        name=name,
        speed_bytes_per_s=stated.speed * _BYTES_PER_S if stated and stated.speed > 0 else None,
        is_loopback=ipaddress.ip_address(own.partition("%")[0]).is_loopback,
    )


def with_address(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """Which interface has an address, given the addresses of each, hardware addresses among them."""
    return next((name for name, of in interfaces.items() if address in [each.partition("%")[0] for each in of]), None)


def family(address: str) -> socket.AddressFamily:
    """That an address belongs to."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
