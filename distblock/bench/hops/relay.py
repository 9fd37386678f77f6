"""The two ends of a hop, without training: an actor that takes activations in and hands activations out.

It follows `distblock.runtime.worker.StageWorker`: a reference comes inside a list and is fetched in the call's own
thread; computing, here of nothing, happens in one further thread; the method is a generator that hands out all that
the call has encoded as one object, and the time between its yielding it and going on is what storing it cost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import ray
import torch
from ray import ObjectRef
from torch import Tensor

from distblock.codecs.cast import decode, encode
from distblock.codecs.memcpy import copy_s
from distblock.codecs.payload import Payload
from distblock.codecs.staging import Staging
from distblock.runtime.transports.inbox import Inbox
from distblock.runtime.transports.outbox import Offer, Outbox

Way = Literal["object store", "worker to worker", "torch tensor"]
"""How an activation crosses: encoded, by either of distblock's transports; or as Ray takes a torch tensor that a method
returns."""

TRANSPORTS: tuple[Way, ...] = ("object store", "worker to worker")
"""distblock's."""

KEPT = 8
"""Calls, of what is handed out from worker to worker: a lane has one on its way."""

SILENCE_S = 60.0
"""After which a relay takes the object store, and the benchmark fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """Seconds of a call at the worker that takes activations in and hands the next ones out.

    Attributes:
        fetch_s, decode_s: of what came in; None where nothing did.
        encode_s, put_s: of what went out.
        offer: where it can be had beside the object store.
    """

    fetch_s: float | None
    decode_s: float | None
    encode_s: float
    put_s: float
    offer: Offer | None


class Relay:
    """The actor class."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        sys.setswitchinterval(0.0005)
        self._clock = time.perf_counter
        self._computing = ThreadPoolExecutor(1)
        self._staging = Staging(torch.device("cpu"))
        self._features = torch.empty(0)
        self._outbox = Outbox(ray.util.get_node_ip_address(), least_bytes=0, most=KEPT)
        self._inbox = Inbox(silence_s=SILENCE_S)

    def make(self, num_bytes: int) -> str:
        """Have an activation of so many bytes at hand, as fresh from computing; the node's address."""
        self._features = torch.rand(num_bytes // 4)
        return ray.util.get_node_ip_address()

    def nothing(self) -> None:
        """The empty call."""

    def hop(
        self, entering: list[ObjectRef], way: Way, count: int, offered: Offer | None
    ) -> Iterator[tuple[Payload, ...] | Tensor | Hop]:
        """Take in what there is, hand out so many activations (as a torch tensor one), then what that cost."""
        fetch_s, decode_s = self._fetch(entering[0], way, offered) if entering else (None, None)
        features = self._computing.submit(lambda: self._features).result()
        begun_s = self._clock()
        ours = way != "torch tensor"
        leaving = tuple(self._encode(features, number) for number in range(count)) if ours else features
        encoded_s = self._clock()
        offer = self._outbox.keep(leaving) if way == "worker to worker" else None
        yield leaving
        put_s = self._clock() - encoded_s
        yield Hop(fetch_s=fetch_s, decode_s=decode_s, encode_s=encoded_s - begun_s, put_s=put_s, offer=offer)

    def copy(self) -> tuple[float, float]:
        """Seconds of a plain memcpy of the activation's bytes, as `copy_s` has it."""
        return copy_s(self._features.numpy())

    def put(self) -> float:
        """Seconds of ``ray.put`` of the activation's bytes as a NumPy array."""
        array = self._features.numpy()
        begun_s = self._clock()
        reference = ray.put(array)
        seconds = self._clock() - begun_s
        del reference
        return seconds

    def _fetch(self, reference: ObjectRef, way: Way, offer: Offer | None) -> tuple[float, float]:
        asked_s = self._clock()
        if way == "torch tensor":
            ray.get(reference)
            return self._clock() - asked_s, 0.0
        payloads, past_store = self._inbox.fetch(reference, offer)
        assert past_store == (way == "worker to worker")
        fetched_s = self._clock()
        for payload in payloads:
            decode(payload, staging=self._staging)
        return fetched_s - asked_s, self._clock() - fetched_s

    def _encode(self, features: Tensor, number: int) -> Payload:
        labels = torch.zeros(1, dtype=torch.int64)
        return encode(features, labels, codec="fp32", run="bench", edge=1, number=number, staging=self._staging)
