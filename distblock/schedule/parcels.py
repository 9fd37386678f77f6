"""How many microbatches go together.

A call takes milliseconds of processor time, of the driver, the worker and Ray, whatever it carries, and on few cores
computing lacks that time. So consecutive microbatches travel together, as many as keep the slowest worker busy for a
while: the more quickly they are computed, the more of them. What is computed does not depend on it, only when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from distblock.config import Config
from distblock.messages import Item, Parcel
from distblock.schedule.credits import Limit

BUSY_S = 0.2
"""Seconds that a parcel keeps the slowest worker busy. With 0.02, workers on two cores took up to half again as long; a
pipeline takes as many seconds longer to fill as it has stages, times this or what a parcel is on a slow line for, which
is a quarter of `distblock.schedule.credits.ON_THE_WAY_S` at most."""

LARGEST = 32
"""Microbatches in a parcel at most: each of them waits for the last."""

_SMOOTHING = 0.1
"""Weight of a new measurement against those before it."""


class ParcelSize:
    """How many microbatches a parcel holds.

    Args:
        fixed: so many; None: as their computing takes.
        largest: so many at most, where it is not fixed.
    """

    def __init__(self, fixed: int | None, *, largest: int = LARGEST) -> None:
        self._fixed = fixed
        self._largest = max(1, largest)
        self._compute_s: dict[int, float] = {}

    def tell(self, worker: int, compute_s: float) -> None:
        """A worker has computed one microbatch in so many seconds."""
        before = self._compute_s.get(worker, compute_s)
        self._compute_s[worker] = before + _SMOOTHING * (compute_s - before)

    @property
    def count(self) -> int:
        """Microbatches of the next parcel."""
        if self._fixed is not None:
            return self._fixed
        slowest_s = max(self._compute_s.values(), default=0.0)
        if slowest_s == 0.0:
            return 1
        return max(1, min(self._largest, round(BUSY_S / slowest_s)))


def parcel_size(config: Config, edges: Sequence[tuple[int, Limit]]) -> ParcelSize:
    """What the settings ask for.

    Args:
        config: the settings.
        edges: of each edge, a sample's bytes and what may be in flight: there has to be room for as many parcels. None:
            they are not known.
    """
    if config.regime.name == "asynchronous":
        return ParcelSize(1)  # each is dropped, or used again, by itself
    channel = config.channel
    if channel.microbatches_per_call != "auto":
        return ParcelSize(channel.microbatches_per_call)
    # Checkpoints lie between parcels.
    largest = min(LARGEST, config.checkpoint.every_microbatches or LARGEST)
    num_samples = max(config.data.train_microbatch, config.data.eval_microbatch)
    for sample_bytes, limit in edges:
        count = min(limit.count, channel.max_in_flight)  # several data workers keep more ready
        largest = min(largest, limit.num_bytes // (count * num_samples * sample_bytes))
    return ParcelSize(None, largest=largest)


def parcels(items: Iterator[Item | None], count: Callable[[], int]) -> Iterator[Parcel | None]:
    """Put consecutive microbatches together; a parcel ends with its pass, and where the stream has to wait.

    Args:
        items: the stream; None in it: not now.
        count: microbatches of the next parcel.
    """
    waiting: list[Item] = []
    for item in items:
        if item is not None:
            waiting.append(item)
        if waiting and (item is None or item.closes_pass or len(waiting) >= count()):
            yield Parcel(tuple(waiting))
            waiting = []
        elif item is None:
            yield None
    if waiting:
        yield Parcel(tuple(waiting))
