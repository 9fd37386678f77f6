"""The receiver's side: what was handed out, from its sender where that offers it, else from the object store."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from distblock.runtime.transports.outbox import Offer
from distblock.runtime.transports.wire import COUNT, QUESTION, greet, read_exactly, read_into

WAIT_S = 30.0
"""Seconds after which a get takes over from a wait: it is told that what it waits for is lost."""

SLICE_S = 0.005
"""Seconds of one wait. A wait keeps the worker's line to Ray's node manager to itself, so what comes later would not
even be asked for meanwhile: over a link with a delay, each activation would wait for its own way there and back."""

SILENCE_S = 10.0
"""Seconds without a byte after which a sender is given up: its process may be frozen."""

_Sender = tuple[str, int]


class Inbox:
    """What one worker takes in.

    Args:
        address: its node's.
        own_node: whether senders on that node are asked, too, where both see the same memory.
        clock: the worker's.
        silence_s: as `SILENCE_S`.
    """

    def __init__(
        self,
        address: str,
        *,
        own_node: bool,
        clock: Callable[[], float] = time.perf_counter,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._address = address
        self._own_node = own_node
        self._clock = clock
        self._silence_s = silence_s
        self._lines: dict[_Sender, list[socket.socket]] = defaultdict(list)
        self._given_up: set[_Sender] = set()
        self._lock = threading.Lock()

    def fetch(self, reference: ObjectRef, offer: Offer | None) -> tuple[Any, bool]:
        """What was handed out, its arrays read-only; and whether it came from its sender.

        Args:
            reference: to it in the object store.
            offer: its sender's.

        Raises:
            RayError: as of ``ray.get``.
        """
        if offer is not None and (self._own_node or offer.address != self._address):
            found = self._from_sender(offer)
            if found is not None:
                return found[0], True
        return self._from_store(reference), False

    def _from_store(self, reference: ObjectRef) -> Any:
        asked_s = self._clock()
        # A get that waits keeps the object store's client to itself: whoever lets go of an earlier activation
        # meanwhile, the computing thread above all, waits as long. On a link of 5 Mbit/s steps of 17 ms lasted 440.
        while not ray.wait([reference], timeout=SLICE_S)[0] and self._clock() - asked_s < WAIT_S:
            pass
        return ray.get(reference)

    def _from_sender(self, offer: Offer) -> tuple[Any] | None:
        """None: it cannot be had there."""
        sender = (offer.address, offer.port)
        if sender in self._given_up:
            return None
        try:
            while (line := self._idle(sender)) is not None:
                # Between two questions, something on the way may have closed it.
                with suppress(ConnectionError):
                    return self._ask(line, offer)
            line = socket.create_connection(sender, timeout=self._silence_s)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._ask(line, offer, is_new=True)
        except OSError:
            # A process that takes over from it listens elsewhere.
            self._given_up.add(sender)
            return None

    def _idle(self, sender: _Sender) -> socket.socket | None:
        with self._lock:
            return self._lines[sender].pop() if self._lines[sender] else None

    def _ask(self, line: socket.socket, offer: Offer, *, is_new: bool = False) -> tuple[Any] | None:
        try:
            if is_new:
                greet(line, offer.token)
            line.sendall(QUESTION.pack(offer.number))
            found = _answer(line)
        except BaseException:
            line.close()
            raise
        with self._lock:
            self._lines[offer.address, offer.port].append(line)
        return found


def _answer(line: socket.socket) -> tuple[Any] | None:
    (count,) = COUNT.unpack(read_exactly(line, COUNT.size))
    if not count:
        return None
    lengths = struct.unpack(f"!{count}Q", read_exactly(line, 8 * count))
    pickled, *arrays = [_buffer(line, length) for length in lengths]
    return (pickle.loads(pickled, buffers=arrays),)


def _buffer(line: socket.socket, length: int) -> memoryview:
    """Numpy does not clear what is filled at once."""
    into = np.empty(length, dtype=np.uint8).data
    read_into(line, into)
    return into.toreadonly()
