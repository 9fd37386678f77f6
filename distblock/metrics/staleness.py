"""How old what a stage trains on is: the updates that the sender has made since it made it.

Both sides tell how far they are in their own reports, and nothing further has to cross the edge.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distblock.messages import WorkerReport

REMEMBERED = 4096
"""Activations of a stage that may still be asked for."""


@dataclass(kw_only=True, slots=True)
class StalenessSums:
    """One edge.

    Attributes:
        uses: training microbatches that crossed it, each counted again when it is used again.
        updates: staleness, summed over these.
        largest: of one of them.
    """

    uses: int = 0
    updates: int = 0
    largest: int = 0

    @property
    def mean(self) -> float | None:
        """Updates a use; None without any."""
        return self.updates / self.uses if self.uses else None


class Staleness:
    """All edges.

    Args:
        num_stages: stages of the run.
    """

    def __init__(self, num_stages: int) -> None:
        self.edges = [StalenessSums() for _ in range(num_stages)]
        self._updates = [0] * num_stages
        self._made_at: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(num_stages)]

    def record(self, report: WorkerReport) -> None:
        """Count a worker's training; where stages train one by one, nothing is stale."""
        item = report.item
        if item.purpose != "train" or item.stage is not None:
            return
        for stage in report.stages:
            for number in (item.number, *report.reused):
                self._use(stage.stage, number)
            made_at = self._made_at[stage.stage]
            # An activation is from before the step that it was made in.
            made_at[item.number] = max(0, stage.updates - item.closes_batch)
            if len(made_at) > REMEMBERED:
                made_at.popitem(last=False)
            self._updates[stage.stage] = max(self._updates[stage.stage], stage.updates)

    def to_json(self) -> dict[str, Any]:
        """All sums; activations that are on their way are not among them, since they will be made again."""
        return {"edges": [asdict(sums) for sums in self.edges], "updates": list(self._updates)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Staleness:
        """Back from there."""
        staleness = cls(len(content["updates"]))
        staleness.edges = [StalenessSums(**edge) for edge in content["edges"]]
        staleness._updates = list(content["updates"])
        return staleness

    def _use(self, stage: int, number: int) -> None:
        if stage == 0 or number not in self._made_at[stage - 1]:
            return
        staleness = self._updates[stage - 1] - self._made_at[stage - 1][number]
        sums = self.edges[stage]
        sums.uses += 1
        sums.updates += staleness
        sums.largest = max(sums.largest, staleness)
