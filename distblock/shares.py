"""A microbatch shared out among a stage's replicas: who takes which samples.

Standard library only: data workers cut by it, workers check by it, and the plain loop goes through the same parts.
"""

from __future__ import annotations

from dataclasses import replace

from distblock.messages import Item


def share(num_samples: int, *, replica: int, count: int) -> slice:
    """The samples that one of ``count`` replicas takes: consecutive ones; the first replicas may take one more.

    >>> [share(10, replica=replica, count=4) for replica in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    size, more = divmod(num_samples, count)
    start = replica * size + min(replica, more)
    return slice(start, start + size + (replica < more))


def share_of(item: Item, *, replica: int, count: int) -> Item:
    """The microbatch as one replica sees it: as many samples as its share has; its place is the whole microbatch's."""
    if count == 1:
        return item
    part = share(item.num_samples, replica=replica, count=count)
    return replace(item, num_samples=part.stop - part.start)
