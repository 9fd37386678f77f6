"""Sums of what has been done as a whole, for checkpoints.

A microbatch is told of stage by stage, and a checkpoint lies between microbatches: what some stages have reported of
one that others have not yet seen belongs to after it. So reports wait here until the microbatch has come to its end,
and only then are they added up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from distblock.messages import Departure, Item, WorkerReport
from distblock.metrics.accounting import Account

_Key = tuple[int | None, int, int]
_Event = WorkerReport | tuple[Departure, str]


class Settling:
    """An account of microbatches that have come to their end.

    Args:
        account: the sums to begin with.
        drops: microbatches may end anywhere, so nothing waits; sums at a checkpoint are then about right.
        replicas: how many report of each stage.

    Attributes:
        account: the sums.
    """

    def __init__(self, account: Account, *, drops: bool, replicas: int = 1) -> None:
        self.account = account
        self._drops = drops
        self._replicas = replicas
        self._last = account.num_stages - 1
        self._waiting: dict[_Key, list[_Event]] = defaultdict(list)
        self._ended: dict[_Key, int] = defaultdict(int)
        self._fork: tuple[Callable[[Item], bool], Account] | None = None

    def record_departure(self, departure: Departure, node: str, item: Item) -> None:
        """A microbatch of data is ready."""
        self._waiting[_key(item)].append((departure, node))
        if self._drops:
            self._settle(item)

    def record(self, report: WorkerReport) -> None:
        """A worker is done with a microbatch, perhaps the last one."""
        item, key = report.item, _key(report.item)
        self._waiting[key].append(report)
        last = self._last if item.stage is None else item.stage
        self._ended[key] += any(stage.stage == last for stage in report.stages)
        if self._drops or self._ended[key] == self._replicas:
            self._settle(item)

    def fork(self, includes: Callable[[Item], bool]) -> None:
        """From now on, sums of what lies within a position are kept apart, too.

        Args:
            includes: whether a microbatch that was under way lies within it.
        """
        self._fork = includes, Account.from_json(self.account.to_json())

    def take_fork(self) -> Account:
        """Those sums, now that all of it has come to its end."""
        assert self._fork is not None
        (_, account), self._fork = self._fork, None
        return account

    def _settle(self, item: Item) -> None:
        key = _key(item)
        events = self._waiting.pop(key)
        self._ended.pop(key, None)
        accounts = [self.account]
        if self._fork is not None and self._fork[0](item):
            accounts.append(self._fork[1])
        for event in events:
            for account in accounts:
                if isinstance(event, WorkerReport):
                    account.record(event)
                else:
                    account.record_departure(*event)


def _key(item: Item) -> _Key:
    return item.stage, item.lap, item.number
