"""What enters a worker: fetched from the worker before, or out of a cache, checked, decoded, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ray import ObjectRef
from torch import Tensor

from distblock.codecs.cast import Features
from distblock.codecs.edge import EdgeCodec, Microbatch
from distblock.codecs.payload import Payload, check_payload
from distblock.codecs.staging import Staging
from distblock.learning.host import HostSpec
from distblock.messages import Arrival, Item, Parcel
from distblock.runtime.caches import CacheReader, CacheSource
from distblock.runtime.transports.inbox import Inbox
from distblock.runtime.transports.outbox import Offer
from distblock.scratch.features import FeatureCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A microbatch on the device.

    Attributes:
        microbatch: whose.
        features, labels: what it is; decoded when its turn to be computed has come where the codec remembers.
        payload: as it came, until then.
        first: the stage it enters.
        num_hops: hops that its fetching stands for: those of all microbatches that a cache holds, at its opening.
        fetch_s, decode_s: seconds of its own.
    """

    microbatch: Microbatch
    features: Features | None
    labels: Tensor
    first: int
    num_hops: int
    fetch_s: float
    decode_s: float
    payload: Payload | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A parcel on the device.

    Attributes:
        microbatches: in order.
        asked_s, fetched_s, decoded_s: when it was asked for, was there, and all was decoded (worker's clock).
        past_store: whether it came from its sender, past the object store.
    """

    microbatches: tuple[Fetched, ...]
    asked_s: float
    fetched_s: float
    decoded_s: float
    past_store: bool

    def arrivals(
        self, fetched: Fetched, *, idle_since_s: float, idle_s: float, in_turn_s: float
    ) -> tuple[Arrival, ...]:
        """The receiver's side of one of its microbatches' hops; what the parcel took is shared out evenly.

        Args:
            fetched: the microbatch.
            idle_since_s: since when the worker has had nothing fresh to compute, when it began the parcel.
            idle_s: how long it has idled since then: it may have trained on kept inputs again.
            in_turn_s: of its decoding, what took its turn among what is computed.
        """
        share = 1 / len(self.microbatches)
        hops = max(1, fetched.num_hops)
        exposed_s = share * min(idle_s, exposed(self.asked_s, self.decoded_s, idle_since_s=idle_since_s))
        arrival = Arrival(
            edge=fetched.first,
            fetch_s=(share * (self.fetched_s - self.asked_s) + fetched.fetch_s) / hops,
            decode_s=fetched.decode_s / hops,
            exposed_s=exposed_s / hops,
            in_turn_s=in_turn_s / hops,
            past_store=self.past_store,
        )
        return (arrival,) * fetched.num_hops


class Intake:
    """One worker's.

    Args:
        spec: what the worker hosts.
        staging: copies to its device.
        codec: of the edge that enters it.
        cache: where its caches lie, if it has any.
        node: its address.
        clock: the worker's.
    """

    def __init__(
        self,
        spec: HostSpec,
        *,
        staging: Staging,
        codec: EdgeCodec,
        cache: FeatureCache | None,
        node: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._spec = spec
        self._staging = staging
        self._codec = codec
        # A sender that is frozen must not make this worker look frozen, too.
        self._inbox = Inbox(silence_s=spec.config.recovery.deadline_s / 4, clock=clock)
        self._cache = cache
        self._reader = None if cache is None else CacheReader(cache, node=node)
        self._clock = clock

    @property
    def opened(self) -> set[str]:
        """Names of the cache files that have been opened."""
        return set() if self._reader is None else self._reader.opened

    def fetch(self, parcel: Parcel, reference: ObjectRef, source: CacheSource | None, offer: Offer | None) -> Arrived:
        """Have a parcel on the device.

        Args:
            parcel: what is expected.
            reference: to the payloads.
            source: the cache that the payloads are positions in; None: they are the microbatches.
            offer: where they can be had beside the object store.

        Raises:
            ValueError: what came is not what was expected.
        """
        asked_s = self._clock()
        payloads: tuple[Payload, ...]
        payloads, past_store = self._inbox.fetch(reference, offer)
        fetched_s = self._clock()
        if len(payloads) != len(parcel.items):
            raise ValueError(f"expected {len(parcel.items)} activations in a parcel, got {len(payloads)}")
        microbatches = tuple(
            self._take(item, payload) if source is None else self._take_cached(item, payload, source)
            for item, payload in zip(parcel.items, payloads, strict=True)
        )
        return Arrived(
            microbatches=microbatches,
            asked_s=asked_s,
            fetched_s=fetched_s,
            decoded_s=self._clock(),
            past_store=past_store,
        )

    def features(self, fetched: Fetched) -> Features:
        """What a microbatch is; called in the order of the stream, where the codec remembers."""
        if fetched.features is not None:
            return fetched.features
        assert fetched.payload is not None
        return self._codec.decode(fetched.payload, fetched.microbatch)[0]

    def _take(self, item: Item, payload: Payload) -> Fetched:
        begun_s = self._clock()
        first = self._spec.stages.start
        shapes = self._spec.blueprint.entering[first]
        check_payload(payload, run=self._spec.run, edge=first, item=item, sample_shapes=shapes)
        microbatch = Microbatch(item=item, samples=payload.samples)
        waits = self._codec.remembers
        if waits:
            features, labels = None, self._staging.to_device(torch.from_numpy(payload.labels))
        else:
            features, labels = self._codec.decode(payload, microbatch)
        return Fetched(
            microbatch=microbatch,
            features=features,
            labels=labels,
            payload=payload if waits else None,
            first=first,
            num_hops=1,
            fetch_s=0.0,
            decode_s=self._clock() - begun_s,
        )

    def _take_cached(self, item: Item, payload: Payload, source: CacheSource) -> Fetched:
        """A microbatch out of a cache; its hops are those of all microbatches that were stored, at its opening."""
        assert self._cache is not None
        assert self._reader is not None
        assert item.stage is not None
        begun_s = self._clock()
        path, is_new = self._reader.open(source, item)
        opened_s = self._clock()
        features, labels = self._cache.take(path, item, payload.arrays[0], payload.labels, staging=self._staging)
        return Fetched(
            microbatch=Microbatch(item=item),
            features=features,
            labels=labels,
            first=item.stage,
            num_hops=self._cache.num_batches(path) if is_new else 0,
            fetch_s=opened_s - begun_s,
            decode_s=self._clock() - opened_s,
        )


def exposed(asked_s: float, decoded_s: float, *, idle_since_s: float) -> float:
    """Seconds of a fetch in which its worker had nothing to compute.

    The worker is idle from the end of one microbatch's computing to the start of the next one's, and that start waits
    for the fetch: so the exposed part is what remains of the fetch after ``idle_since_s``.
    """
    return max(0.0, decoded_s - max(asked_s, idle_since_s))
