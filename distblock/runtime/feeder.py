"""DataWorker: the actor that decodes and augments ahead of stage 0."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import torch

from distblock.codecs.cast import encode
from distblock.codecs.payload import Header, Payload
from distblock.codecs.staging import Staging
from distblock.config import Config
from distblock.data.dataset import DataInfo, open_data
from distblock.messages import Departure, Item
from distblock.runtime.faults import Strikes
from distblock.runtime.handover import Ready
from distblock.shares import share


class DataWorker:
    """The actor class; several take the items of the stream in turn.

    Args:
        run: the run's name.
        config: its settings.
        info: what is known of the data.
        dataset: the user's own data, where it was given in Python.
        strikes: when to die, in tests.
    """

    def __init__(
        self,
        run: str,
        config: Config,
        info: DataInfo,
        dataset: Callable[..., Any] | None,
        strikes: Strikes | None = None,
    ) -> None:
        torch.set_num_threads(1)
        os.nice(10)  # it works ahead; where cores are short, a stage's computing goes first
        self._run = run
        self._replicas = config.replicas
        self._data = open_data(config.data, seed=config.seed, dataset=dataset, info=info)
        self._staging = Staging(torch.device("cpu"))
        self._node = ray.util.get_node_ip_address()
        self._strikes = strikes or Strikes((), process=0)

    def ready(self) -> Ready:
        """Where it is."""
        return Ready(node=self._node, node_id=ray.get_runtime_context().get_node_id())

    def locate(self, item: Item, turn: int) -> Iterator[Payload | tuple[tuple[Departure, ...], str]]:
        """Where the microbatch's samples lie in their part's own order, with their labels; for a worker with a cache.

        Nothing is read, and nothing departs.
        """
        positions, labels = self._data.positions(item)
        self._strikes.strike("computed", turn)
        header = Header(run=self._run, edge=item.stage or 0, number=item.number, tensors=())
        yield Payload(header=header, arrays=(positions,), labels=labels, payload_bytes=0)
        yield (), self._node

    def prepare(self, item: Item, turn: int) -> Iterator[Payload | tuple[tuple[Departure, ...], str]]:
        """The microbatch for stage 0, a share for each replica, then what it took and where it lies.

        Raises:
            DataError: a sample cannot be read; the message names it.
        """
        self._strikes.strike("before", turn)
        images, labels = self._data.microbatch(item)
        self._strikes.strike("computed", turn)
        departures = []
        for replica in range(self._replicas):
            part = share(item.num_samples, replica=replica, count=self._replicas)
            payload = self._encode(item, images[part], labels[part])
            begun_s = time.perf_counter()
            yield payload
            departures.append(
                Departure(
                    edge=0,
                    payload_bytes=payload.payload_bytes,
                    wire_bytes=payload.wire_bytes,
                    encode_s=0.0,
                    put_s=time.perf_counter() - begun_s,
                )
            )
        self._strikes.strike("stored", turn)
        yield tuple(departures), self._node

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
