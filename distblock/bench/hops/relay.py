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

Way = Literal["distblock", "torch tensor"]
"""How an activation crosses: encoded, or as Ray takes a torch tensor that a method returns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """Seconds of a call at the worker that takes activations in and hands the next ones out.

    Attributes:
        fetch_s, decode_s: of what came in; None where nothing did.
        encode_s, put_s: of what went out.
    """

    fetch_s: float | None
    decode_s: float | None
    encode_s: float
    put_s: float


class Relay:
    """The actor class."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        sys.setswitchinterval(0.0005)
        self._clock = time.perf_counter
        self._computing = ThreadPoolExecutor(1)
        self._staging = Staging(torch.device("cpu"))
        self._features = torch.empty(0)

    def make(self, num_bytes: int) -> str:
        """Have an activation of so many bytes at hand, as fresh from computing; the node's address."""
        self._features = torch.rand(num_bytes // 4)
        return ray.util.get_node_ip_address()

    def nothing(self) -> None:
        """The empty call."""

    def hop(self, entering: list[ObjectRef], way: Way, count: int) -> Iterator[tuple[Payload, ...] | Tensor | Hop]:
        """Take in what there is, hand out so many activations (as a torch tensor one), then what that cost."""
        fetch_s, decode_s = self._fetch(entering[0], way) if entering else (None, None)
        features = self._computing.submit(lambda: self._features).result()
        begun_s = self._clock()
        ours = way == "distblock"
        leaving = tuple(self._encode(features, number) for number in range(count)) if ours else features
        encoded_s = self._clock()
        yield leaving
        put_s = self._clock() - encoded_s
        yield Hop(fetch_s=fetch_s, decode_s=decode_s, encode_s=encoded_s - begun_s, put_s=put_s)

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

    def _fetch(self, reference: ObjectRef, way: Way) -> tuple[float, float]:
        asked_s = self._clock()
        if way == "distblock":
            ray.wait([reference])
        value = ray.get(reference)
        fetched_s = self._clock()
        if way == "distblock":
            for payload in value:
                decode(payload, staging=self._staging)
        return fetched_s - asked_s, self._clock() - fetched_s

    def _encode(self, features: Tensor, number: int) -> Payload:
        labels = torch.zeros(1, dtype=torch.int64)
        return encode(features, labels, codec="fp32", run="bench", edge=1, number=number, staging=self._staging)
