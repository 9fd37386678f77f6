"""The sender's side: what it has handed out of late, for the next worker to fetch over a connection."""

from __future__ import annotations

import pickle
import secrets
import socket
import socketserver
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distblock.pickling import quickly_pickled
from distblock.runtime.interfaces import family
from distblock.runtime.transports.wire import COUNT, QUESTION, TOKEN_BYTES, digest, read_exactly, set_up, welcome

GREETING_S = 10.0
"""Seconds in which who connects has to show that it knows the token."""


@quickly_pickled
@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Where what a call has handed out can be had beside the object store.

    Attributes:
        address, port: where its sender listens.
        token: that the sender and whoever has the offer know.
        number: which of the things that the sender keeps.
    """

    address: str
    port: int
    token: bytes = field(repr=False)
    number: int


class Outbox:
    """What one worker keeps.

    Each thing is given once: who would ask again is a process that has taken over, and has the reference.

    Args:
        address: the node's own; it is listened at alone.
        least_bytes: of a thing, below which it is not kept.
        most: things that are kept: as many as can be in flight. An older one has been dropped on its way, or was
            fetched from the object store.

    Raises:
        OSError: the address cannot be listened at.
    """

    def __init__(self, address: str, *, least_bytes: float, most: int) -> None:
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._least_bytes, self._most = least_bytes, most
        self._kept: dict[int, list[memoryview]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._server = _server(self, address)
        self._address, self._port = address, self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="outbox", daemon=True).start()

    def keep(self, value: Any) -> Offer | None:
        """Keep something that is pickled with its arrays beside it; None: it is too small.

        Args:
            value: what nobody writes to any more.
        """
        arrays: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        buffers = [memoryview(pickled), *(array.raw() for array in arrays)]
        if sum(buffer.nbytes for buffer in buffers) < self._least_bytes:
            return None
        with self._lock:
            self._next += 1
            self._kept[self._next] = buffers
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
            return Offer(address=self._address, port=self._port, token=self.token, number=self._next)

    def take(self, number: int) -> list[memoryview]:
        """Let go of what is kept under a number; nothing where nothing is."""
        with self._lock:
            return self._kept.pop(number, [])

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def _server(outbox: Outbox, address: str) -> socketserver.ThreadingTCPServer:
    class Server(socketserver.ThreadingTCPServer):
        address_family = family(address)
        daemon_threads = True
        block_on_close = False
        # Each of the receiver's threads has a connection of its own.
        request_queue_size = 128

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            """Answer question after question; a line that breaks, or a stranger's, is closed, and that is all."""
            line: socket.socket = self.request
            set_up(line)
            line.settimeout(GREETING_S)
            with suppress(OSError):
                welcome(line, outbox.token)
                line.settimeout(None)
                while True:
                    _answer(line, outbox)

    return Server((address, 0), Handler)


def _answer(line: socket.socket, outbox: Outbox) -> None:
    (number,) = QUESTION.unpack(read_exactly(line, QUESTION.size))
    buffers = outbox.take(number)
    if not buffers:
        line.sendall(COUNT.pack(0))
        return
    lengths = struct.pack(f"!{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
    signed = digest(outbox.token, b"answer", QUESTION.pack(number) + lengths + bytes(buffers[0]))
    line.sendall(COUNT.pack(len(buffers)) + lengths + signed)
    for buffer in buffers:
        line.sendall(buffer)
