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

import ray
import torch
from ray import ObjectRef

from distblock.runtime.transports.outbox import Offer
from distblock.runtime.transports.wire import (
    COUNT,
    DIGEST_BYTES,
    QUESTION,
    check,
    greet,
    read_exactly,
    read_into,
    set_up,
)

WAIT_S = 30.0
"""Seconds after which a get takes over from a wait: it is told that what it waits for is lost."""

SLICE_S = 0.005
"""Seconds of one wait. A wait keeps the worker's line to Ray's node manager to itself, so what comes later would not
even be asked for meanwhile: over a link with a delay, each activation would wait for its own way there and back."""

CONNECT_S = 3.0
"""Seconds in which a sender has to take a connection: between are the run's own nodes."""

GIVEN_UP_S = 60.0
"""Seconds for which a sender is not asked again that has not answered; a process that takes over listens elsewhere."""

FAILURES = (OSError, OverflowError, ValueError, struct.error, MemoryError, RuntimeError)
"""Of a sender or of the way to it; the last two: memory is short here, and torch says so in its own way."""

_Sender = tuple[str, int]


class Inbox:
    """What one worker takes in.

    Args:
        silence_s: seconds without a byte after which a sender is given up: its process may be frozen.
        clock: the worker's.
    """

    def __init__(self, *, silence_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._lines: dict[_Sender, list[socket.socket]] = defaultdict(list)
        self._given_up: dict[_Sender, float] = {}
        self._lock = threading.Lock()

    def fetch(self, reference: ObjectRef, offer: Offer | None) -> tuple[Any, bool]:
        """What was handed out, its arrays read-only; and whether it came from its sender.

        Args:
            reference: to it in the object store.
            offer: its sender's.

        Raises:
            RayError: as of ``ray.get``.
        """
        found = None if offer is None else self._from_sender(offer)
        return (self._from_store(reference), False) if found is None else (found[0], True)

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
        if not self._may_ask(sender):
            return None
        try:
            if (line := self._idle(sender)) is not None:
                # Since the last question something on the way may have closed it, or forgotten it.
                with suppress(OSError):
                    return self._ask(line, offer)
                self._close_idle(sender)
            line = socket.create_connection(sender, timeout=min(CONNECT_S, self._silence_s))
            set_up(line)
            line.settimeout(self._silence_s)
            found = self._ask(line, offer, is_new=True)
            self._given_up.pop(sender, None)
            return found
        except FAILURES:
            self._given_up[sender] = self._clock()
            self._close_idle(sender)
            return None

    def _may_ask(self, sender: _Sender) -> bool:
        """A sender that was given up is asked again by one thread: the others need not wait as long."""
        with self._lock:
            since_s = self._given_up.get(sender)
            if since_s is None:
                return True
            if self._clock() - since_s < GIVEN_UP_S:
                return False
            self._given_up[sender] = self._clock()
            return True

    def _idle(self, sender: _Sender) -> socket.socket | None:
        with self._lock:
            return self._lines[sender].pop() if self._lines[sender] else None

    def _close_idle(self, sender: _Sender) -> None:
        with self._lock:
            lines = self._lines.pop(sender, [])
        for line in lines:
            line.close()

    def _ask(self, line: socket.socket, offer: Offer, *, is_new: bool = False) -> tuple[Any] | None:
        try:
            if is_new:
                greet(line, offer.token)
            line.sendall(QUESTION.pack(offer.number))
            found = _answer(line, offer)
        except BaseException:
            line.close()
            raise
        with self._lock:
            self._lines[offer.address, offer.port].append(line)
        return found


def _answer(line: socket.socket, offer: Offer) -> tuple[Any] | None:
    (count,) = COUNT.unpack(read_exactly(line, COUNT.size))
    if not count:
        return None
    packed = read_exactly(line, 8 * count)
    signed = read_exactly(line, DIGEST_BYTES)
    first, *lengths = struct.unpack(f"!{count}Q", packed)
    pickled = read_exactly(line, first)
    check(signed, offer.token, b"answer", QUESTION.pack(offer.number) + packed + pickled)
    return (pickle.loads(pickled, buffers=[_buffer(line, length) for length in lengths]),)


def _buffer(line: socket.socket, length: int) -> memoryview:
    """Aligned as torch's own tensors are: kernels give the same bits for what is aligned alike."""
    into = torch.empty(length, dtype=torch.uint8).numpy().data
    read_into(line, into)
    return into.toreadonly()
