"""Scout: the actor that looks around on a node before the run's workers are started there.

A worker takes seconds to import what it needs and to open the data, and fails in its own words where something is
missing. A scout imports little, takes no CPU from Ray, and is gone before the first worker comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from distblock.config import DataConfig
from distblock.data.listing import Listing, list_files
from distblock.errors import DataError
from distblock.learning.allocator import jemalloc_here
from distblock.runtime.interfaces import Interface, interface_to
from distblock.runtime.reach import Token, look
from distblock.runtime.transfers import Door, Sender, receive


@dataclass(frozen=True, kw_only=True)
class Received:
    """The end of a transfer: its rate in bytes a second, or why there is none."""

    bytes_per_s: float | None
    problem: str | None = None


class Scout:
    """The actor class.

    Args:
        address: its node's.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._sender: Sender | None = None

    def jemalloc(self) -> str | None:
        """Where workers of the node find it, see `distblock.learning.allocator.jemalloc_here`."""
        return jemalloc_here()

    def see_storage(self, pickled: bytes, expected: Token) -> str | None:
        """What is there instead of what the driver has written, in words; None: it is there."""
        return look(pickled, expected)

    def see_data(self, config: DataConfig) -> Listing | str | None:
        """The data's files, or why they cannot be seen, in words; None: the data set needs none."""
        try:
            return list_files(config)
        except (DataError, OSError) as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"

    def interface_to(self, address: str) -> Interface:
        """The network interface by which the node reaches another."""
        return interface_to(address)

    def listen(self) -> Door | str:
        """Be ready for a transfer; or why it cannot be."""
        try:
            self._sender = Sender(self._address)
        except OSError as error:
            return f"cannot listen at {self._address}: {error}"
        return self._sender.door

    def send(self) -> str | None:
        """Send what it is ready for; why nothing could be sent, or None."""
        assert self._sender is not None
        try:
            self._sender.send()
        except OSError as error:
            return str(error)
        return None

    def receive(self, door: Door) -> Received:
        """Take the transfer from there."""
        try:
            rate = receive(door)
        except OSError as error:
            return Received(bytes_per_s=None, problem=f"{door.address} port {door.port} cannot be reached: {error}")
        return Received(bytes_per_s=rate, problem="too little came" if rate is None else None)
