"""StageWorker: the actor that hosts a stage, or several consecutive ones.

A reference passed as an argument is fetched by Ray before the method starts: early, but nobody sees what it cost. Here
it comes inside a list and stays a reference; the call's own thread fetches it, timed, while another call computes. All
computing happens in one further thread, in stream order. The method is a generator: what it yields first is stored by
Ray before it goes on, so the time between the two is what storing cost. The caller, the driver, owns both values; they
outlive this process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from distblock.codecs.cast import Features, decode, encode
from distblock.codecs.payload import Payload, check_payload
from distblock.codecs.staging import Staging
from distblock.errors import StageError
from distblock.learning.host import Host, HostSpec, Work, explain
from distblock.messages import Arrival, Departure, Item, WorkerReport
from distblock.runtime.turns import Turns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fetched:
    """A microbatch on the device, and when it came (on the worker's clock)."""

    features: Features
    labels: Tensor
    asked_s: float
    fetched_s: float
    decoded_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Computed:
    """What computing gave, and when it ran (on the worker's clock)."""

    work: Work
    started_s: float
    finished_s: float
    idle_since_s: float


class StageWorker:
    """The actor class; made an actor by the driver.

    Args:
        spec: the stages to host.
        index: the worker's place among the workers.
    """

    def __init__(self, spec: HostSpec, index: int) -> None:
        self._spec = spec
        self._index = index
        self._is_last = spec.stages.stop == spec.blueprint.num_stages
        self._clock = time.perf_counter
        self._epoch_s = time.time() - self._clock()
        num_threads = spec.config.resources.threads_per_worker
        torch.set_num_threads(num_threads)
        # Between two kernels the computing thread needs the interpreter; it would wait up to 5 ms for a fetching one.
        sys.setswitchinterval(0.0005)
        self._computing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(num_threads,))
        self._host = Host(spec, clock=self._clock)
        self._staging = Staging(spec.device)
        self._turns = Turns()
        self._node = ray.util.get_node_ip_address()
        self._idle_since_s = self._clock()

    def load(self, state: dict[int, dict[str, np.ndarray]]) -> None:
        """Start from these weights: by stage, then by name."""
        for stage in self._host.stages:
            arrays = state.get(stage.index, {})
            stage.load({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})

    def ready(self) -> str:
        """The node's address; called once all is built, and the worker's idle time counts from here."""
        self._idle_since_s = self._clock()
        return self._node

    def hop(self, item: Item, payloads: list[ObjectRef]) -> Iterator[Payload | WorkerReport | None]:
        """Fetch a microbatch, pass it through the stages, hand out the output (None if last) and then the report.

        Raises:
            StageError: a stage failed, or what came was not what was expected.
        """
        try:
            fetched = self._fetch(item, payloads[0])
            with self._turns.turn(item.number):
                computing = self._computing.submit(self._compute, item, fetched)
            computed = computing.result()
            departures = computed.work.departures
            if self._is_last:
                yield None
            else:
                payload, encode_s = self._encode(item, computed.work.features, fetched.labels)
                begun_s = self._clock()
                yield payload
                departures += (_departure(payload, encode_s, put_s=self._clock() - begun_s),)
            yield self._report(item, fetched, computed, departures)
        except StageError as failure:
            self._turns.fail(failure)
            raise
        except Exception as error:
            failure = StageError(self._spec.stages.start, str(item), explain(error))
            self._turns.fail(failure)
            raise failure from error

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """Weights and buffers, by stage, then by name."""
        return {
            stage.index: {name: tensor.numpy() for name, tensor in stage.state().items()} for stage in self._host.stages
        }

    def _fetch(self, item: Item, reference: ObjectRef) -> _Fetched:
        first = self._spec.stages.start
        asked_s = self._clock()
        payload: Payload = ray.get(reference)
        fetched_s = self._clock()
        shapes = self._spec.blueprint.entering[first]
        check_payload(payload, run=self._spec.run, edge=first, item=item, sample_shapes=shapes)
        features, labels = decode(payload, staging=self._staging)
        return _Fetched(features=features, labels=labels, asked_s=asked_s, fetched_s=fetched_s, decoded_s=self._clock())

    def _compute(self, item: Item, fetched: _Fetched) -> _Computed:
        started_s, idle_since_s = self._clock(), self._idle_since_s
        work = self._host.work(item, fetched.features, fetched.labels)
        self._staging.mark()
        self._idle_since_s = self._clock()
        return _Computed(work=work, started_s=started_s, finished_s=self._idle_since_s, idle_since_s=idle_since_s)

    def _encode(self, item: Item, features: Features, labels: Tensor) -> tuple[Payload, float]:
        begun_s = self._clock()
        payload = encode(
            features,
            labels,
            codec=self._spec.config.channel.codec,
            run=self._spec.run,
            edge=self._spec.stages.stop,
            number=item.number,
            staging=self._staging,
        )
        return payload, self._clock() - begun_s

    def _report(
        self, item: Item, fetched: _Fetched, computed: _Computed, departures: tuple[Departure, ...]
    ) -> WorkerReport:
        arrival = Arrival(
            edge=self._spec.stages.start,
            fetch_s=fetched.fetched_s - fetched.asked_s,
            decode_s=fetched.decoded_s - fetched.fetched_s,
            exposed_s=exposed(fetched.asked_s, fetched.decoded_s, idle_since_s=computed.idle_since_s),
        )
        return WorkerReport(
            worker=self._index,
            item=item,
            stages=computed.work.reports,
            arrivals=(arrival, *computed.work.arrivals),
            departures=departures,
            started_s=self._epoch_s + computed.started_s,
            finished_s=self._epoch_s + computed.finished_s,
            idle_s=computed.started_s - computed.idle_since_s,
            peak_memory_bytes=self._host.peak_memory_bytes(),
            node=self._node,
        )


def exposed(asked_s: float, decoded_s: float, *, idle_since_s: float) -> float:
    """Seconds of a fetch in which its worker had nothing to compute.

    The worker is idle from the end of one microbatch's computing to the start of the next one's, and that start waits
    for the fetch: so the exposed part is what remains of the fetch after ``idle_since_s``.
    """
    return max(0.0, decoded_s - max(asked_s, idle_since_s))


def _departure(payload: Payload, encode_s: float, *, put_s: float) -> Departure:
    return Departure(
        edge=payload.header.edge,
        payload_bytes=payload.payload_bytes,
        wire_bytes=payload.wire_bytes,
        encode_s=encode_s,
        put_s=put_s,
    )
