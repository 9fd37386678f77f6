"""A line's rate, by a plain TCP transfer between two processes.

The receiver's clock counts: what the sender's kernel has taken has not arrived. A connection needs time to find its
speed, and a shaped line lets a first burst pass, so the rate is that of the latter half. The sender listens, at the
node's own address alone, and sends to none but who shows a token that was drawn for this one transfer. So what has a
rate is a line on which a receiver can reach its sender, as it does from worker to worker.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from distblock.runtime.interfaces import family
from distblock.runtime.transports.wire import read_exactly

TRANSFER_S = 0.5
"""Seconds of a transfer; it ends before if it has come to `TRANSFER_BYTES`."""

TRANSFER_BYTES = 2**28

CONNECT_S = 5.0
"""Seconds in which the receiver has to come, and to show its token."""

_CHUNK_BYTES = 2**18

_TOKEN_BYTES = 32

_DROP_THE_REST = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing does not wait until a slow line has taken what is still buffered."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How far a transfer had come: seconds since its first byte, and bytes."""

    s: float
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where a sender listens.

    Attributes:
        address, port: of its socket.
        token: what the receiver shows.
    """

    address: str
    port: int
    token: bytes


class Sender:
    """A socket for one transfer; closed afterwards.

    Args:
        address: the node's own.

    Raises:
        OSError: it cannot be listened on.
    """

    def __init__(self, address: str) -> None:
        self._server = socket.create_server((address, 0), family=family(address))
        port = self._server.getsockname()[1]
        self.door = Door(address=address, port=port, token=secrets.token_bytes(_TOKEN_BYTES))

    def send(self) -> None:
        """Send until the receiver has had enough.

        Raises:
            OSError: nobody came with the token in time.
        """
        block = os.urandom(_CHUNK_BYTES)  # what does not compress
        sent = 0
        with self._server, self._accept() as line:
            line.settimeout(CONNECT_S)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_THE_REST)
            end_s = time.monotonic() + 2 * TRANSFER_S
            with suppress(ConnectionError, TimeoutError):
                while sent < TRANSFER_BYTES and time.monotonic() < end_s:
                    line.sendall(block)
                    sent += len(block)

    def _accept(self) -> socket.socket:
        end_s = time.monotonic() + CONNECT_S
        while (left_s := end_s - time.monotonic()) > 0:
            self._server.settimeout(left_s)
            line, _ = self._server.accept()
            line.settimeout(max(0.001, end_s - time.monotonic()))
            if _shows(line, self.door.token):
                return line
            line.close()
        raise TimeoutError(f"nobody came in {CONNECT_S:g} s")


def receive(door: Door) -> float | None:
    """Take the transfer.

    Returns:
        Bytes a second; None: too little came.

    Raises:
        OSError: the sender cannot be reached.
    """
    with socket.create_connection((door.address, door.port), timeout=CONNECT_S) as line:
        line.sendall(door.token)
        return settled_rate(_samples(line))


def settled_rate(samples: Sequence[Sample]) -> float | None:
    """Bytes a second over the latter half of a transfer's time; None: there is nothing to divide by."""
    if not samples:
        return None
    last = samples[-1]
    middle = [sample for sample in samples if sample.s <= last.s / 2][-1]
    seconds = last.s - middle.s
    return (last.num_bytes - middle.num_bytes) / seconds if seconds > 0 else None


def _samples(line: socket.socket) -> list[Sample]:
    buffer = bytearray(_CHUNK_BYTES)
    line.settimeout(TRANSFER_S)
    samples: list[Sample] = []
    begun_s, num_bytes = time.monotonic(), 0
    with suppress(ConnectionError, TimeoutError):
        while (num := line.recv_into(buffer)) > 0:
            now_s = time.monotonic()
            begun_s = begun_s if samples else now_s
            num_bytes += num
            samples.append(Sample(s=now_s - begun_s, num_bytes=num_bytes))
            if now_s - begun_s >= TRANSFER_S or num_bytes >= TRANSFER_BYTES:
                break
    return samples


def _shows(line: socket.socket, token: bytes) -> bool:
    with suppress(OSError):
        return hmac.compare_digest(read_exactly(line, len(token)), token)
    return False
