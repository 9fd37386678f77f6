"""DataWorker: the actor that decodes and augments ahead of stage 0."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch

from distblock.codecs.cast import encode
from distblock.codecs.payload import Header, Payload
from distblock.codecs.staging import Staging
from distblock.config import Config
from distblock.data.dataset import DataInfo
from distblock.data.opening import open_data
from distblock.messages import DataReport, Departure, Item, Parcel, Passage
from distblock.runtime.faults import Strikes
from distblock.runtime.handover import Ready, Told
from distblock.runtime.transports.choice import open_outbox
from distblock.runtime.transports.outbox import Offer
from distblock.shares import share


class DataWorker:
    """The actor class; several take the items of the stream in turn.

    Args:
        run: the run's name.
        config: its settings.
        info: what is known of the data.
        dataset: the user's own data, where it was given in Python.
        strikes: when to die, in tests.
        offers: the replicas whose share it offers, see `distblock.runtime.transports`.
    """

    def __init__(
        self,
        run: str,
        config: Config,
        info: DataInfo,
        dataset: Callable[..., Any] | None,
        strikes: Strikes | None = None,
        *,
        offers: Collection[int] = (),
    ) -> None:
        torch.set_num_threads(1)
        os.nice(10)  # it works ahead; where cores are short, a stage's computing goes first
        self._run = run
        self._replicas = config.replicas
        self._is_recording = config.metrics.record
        self._names_samples = config.channel.remembers
        self._data = open_data(config.data, seed=config.seed, dataset=dataset, info=info)
        self._staging = Staging(torch.device("cpu"))
        self._node = ray.util.get_node_ip_address()
        self._strikes = strikes or Strikes((), process=0)
        self._offers = offers
        most = config.data.prefetch * config.data.workers * len(offers)
        self._outbox = open_outbox(config, self._node, most=most) if offers else None

    def ready(self) -> Ready:
        """Where it is."""
        return Ready(node=self._node, node_id=ray.get_runtime_context().get_node_id())

    def locate(self, parcel: Parcel, turn: int) -> Iterator[tuple[Payload, ...] | Told]:
        """Where the microbatches' samples lie in their part's own order, with their labels; for a worker with a cache.

        Nothing is read, and nothing departs.
        """
        asked_s = time.time()
        located = [self._data.positions(item) for item in parcel.items]
        self._strikes.strike("computed", turn)
        yield tuple(
            Payload(
                header=Header(run=self._run, edge=item.stage or 0, number=item.number, tensors=()),
                arrays=(positions,),
                labels=labels,
                payload_bytes=0,
            )
            for item, (positions, labels) in zip(parcel.items, located, strict=True)
        )
        located_s = time.time()
        passage = self._passage((asked_s, asked_s, located_s, located_s), ())
        reports = tuple(DataReport(item=item, departures=(), node=self._node, passage=passage) for item in parcel.items)
        yield Told(reports, (None,))

    def prepare(self, parcel: Parcel, turn: int) -> Iterator[tuple[Payload, ...] | Told]:
        """The microbatches for stage 0, a share of them for each replica, then what each took and where it lies.

        Raises:
            DataError: a sample cannot be read; the message names it.
        """
        asked_s = time.time()
        self._strikes.strike("before", turn)
        started_s, read = [], []
        for item in parcel.items:
            started_s.append(time.time())
            read.append(self._data.microbatch(item))
        finished_s = [*started_s[1:], time.time()]
        self._strikes.strike("computed", turn)
        departures: list[list[Departure]] = [[] for _ in parcel.items]
        offers: list[Offer | None] = []
        for replica in range(self._replicas):
            payloads = tuple(self._share(item, replica, *each) for item, each in zip(parcel.items, read, strict=True))
            begun_s = time.perf_counter()
            offers.append(self._offer(replica, payloads))
            yield payloads
            put_s = (time.perf_counter() - begun_s) / len(payloads)
            if self._is_recording:
                for each, payload in zip(departures, payloads, strict=True):
                    each.append(payload.departure(encode_s=0.0, put_s=put_s))
        self._strikes.strike("stored", turn)
        stored_s = time.time()
        reports = tuple(
            DataReport(
                item=item,
                departures=tuple(each),
                node=self._node,
                passage=self._passage((asked_s, start_s, end_s, stored_s), each),
            )
            for item, each, start_s, end_s in zip(parcel.items, departures, started_s, finished_s, strict=True)
        )
        yield Told(reports, tuple(offers))

    def _offer(self, replica: int, payloads: tuple[Payload, ...]) -> Offer | None:
        return None if self._outbox is None or replica not in self._offers else self._outbox.keep(payloads)

    def _share(self, item: Item, replica: int, images: np.ndarray, labels: np.ndarray) -> Payload:
        part = share(item.num_samples, replica=replica, count=self._replicas)
        payload = self._encode(item, images[part], labels[part])
        return payload.with_samples(self._data.samples(item)[part]) if self._names_samples else payload

    def _encode(self, item: Item, images: np.ndarray, labels: np.ndarray) -> Payload:
        return encode(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            codec="fp32",
            run=self._run,
            edge=0,
            number=item.number,
            staging=self._staging,
        )

    def _passage(self, moments_s: tuple[float, float, float, float], departures: Sequence[Departure]) -> Passage | None:
        """Asked, started, finished, stored: it fetches nothing, and its samples are encoded as they are read."""
        if not self._is_recording:
            return None
        asked_s, started_s, finished_s, stored_s = moments_s
        return Passage(
            asked_s=asked_s,
            fetched_s=asked_s,
            decoded_s=asked_s,
            started_s=started_s,
            finished_s=finished_s,
            encoded_s=finished_s,
            stored_s=stored_s,
            wire_bytes=sum(hop.wire_bytes for hop in departures),
        )
