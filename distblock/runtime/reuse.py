"""What a worker of the asynchronous regime does while nothing fresh has come: it trains on kept inputs again.

All of it happens in the worker's computing thread, between fresh microbatches, so a fresh one waits for one such step
at most. During an evaluation weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from torch import Tensor

from distblock.codecs.cast import Features
from distblock.learning.host import Host, HostSpec
from distblock.messages import Item
from distblock.schedule.reuse import ReuseBuffer
from distblock.seeds import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Reused:
    """What was done since the last fresh microbatch.

    Attributes:
        numbers: of the microbatches that were used again.
        seconds: that it took.
    """

    numbers: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    item: Item
    features: Features
    labels: Tensor


class Reuse:
    """One worker's kept inputs; does nothing in other regimes.

    Args:
        spec: what the worker hosts.
        host: its stages.
        computing: the thread that computes.
        clock: seconds from any start.
    """

    def __init__(self, spec: HostSpec, host: Host, computing: Executor, *, clock: Callable[[], float]) -> None:
        regime = spec.config.regime
        # The first worker is never short of data.
        self._is_on = regime.name == "asynchronous" and regime.max_reuses > 0 and spec.stages.start > 0
        self._host = host
        self._computing = computing
        self._clock = clock
        self._buffer: ReuseBuffer[_Input] = ReuseBuffer(
            size=regime.buffer_size,
            order=regime.buffer_order,
            max_reuses=max(1, regime.max_reuses),
            seed=derive_seed(spec.config.seed, "reuse", spec.stages.start),
        )
        self._expected = 0
        self._seen = 0
        self._numbers: list[int] = []
        self._seconds = 0.0
        self._failure: BaseException | None = None

    def expect(self, count: int) -> None:
        """So many fresh microbatches are about to be computed; called before they are queued, one call at a time."""
        self._expected += count

    def fresh(self, item: Item, features: Features, labels: Tensor) -> Reused:
        """A fresh microbatch has been computed; what was done since the one before.

        Raises:
            StageError: a stage failed on an input that it used again.
        """
        self._seen += 1
        if self._failure is not None:
            raise self._failure
        reused = Reused(numbers=tuple(self._numbers), seconds=self._seconds)
        self._numbers, self._seconds = [], 0.0
        if self._is_on and item.purpose == "train":
            self._buffer.add(_Input(item=item, features=features, labels=labels))
            self._computing.submit(self._again).add_done_callback(self._note_failure)
        return reused

    def _again(self) -> None:
        """Use one input again, and come back; not while a fresh one is queued."""
        if self._expected > self._seen:
            return
        drawn = self._buffer.draw()
        if drawn is None:
            return
        begun_s = self._clock()
        self._host.work(drawn.item, drawn.features, drawn.labels)
        self._numbers.append(drawn.item.number)
        self._seconds += self._clock() - begun_s
        self._computing.submit(self._again).add_done_callback(self._note_failure)

    def _note_failure(self, future: Future[None]) -> None:
        if not future.cancelled():
            self._failure = self._failure or future.exception()
