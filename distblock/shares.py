"""A microbatch shared out among a stage's replicas: who takes which samples.

Standard library only: data workers cut by it, workers check by it, and the plain loop goes through the same parts.
"""

from __future__ import annotations

from dataclasses import replace

from distblock.messages import Parcel


def share(num_samples: int, *, replica: int, count: int) -> slice:
    """The samples that one of ``count`` replicas takes: consecutive ones; the first replicas may take one more.

    >>> [share(10, replica=replica, count=4) for replica in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    size, more = divmod(num_samples, count)
    start = replica * size + min(replica, more)
    return slice(start, start + size + (replica < more))


def share_of(parcel: Parcel, *, replica: int, count: int) -> Parcel:
    """Microbatches as one replica sees them: as many samples as its shares have; their places are the wholes'."""
    if count == 1:
        return parcel
    parts = [share(item.num_samples, replica=replica, count=count) for item in parcel.items]
    return Parcel(
        tuple(replace(item, num_samples=part.stop - part.start) for item, part in zip(parcel.items, parts, strict=True))
    )
