"""Which classifiers are asked on the way, and how sure they have to be: the best choices for each share of compute.

A classifier costs operations of its own, and one that is asked next to a better one answers little; so an image passes
some stages unasked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCES = (*(step / 50 for step in range(10, 50)), 0.99, 0.995, 0.999)
"""That are tried."""

MOST_ASKED = 3
"""Stages that are asked before the last, where choices are searched; fewer in deep networks."""

MOST_CHOICES = 200
"""Of stages, so that the search takes seconds."""

MOST_SAMPLES = 10_000
"""That are searched with; of more every second, third and so on."""

STEPS = tuple(step / 20 for step in range(1, 20))
"""Shares of compute; for each the best choice that takes no more is kept."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a stage before the last answers.

    Attributes:
        confidence: probability of the likeliest class from which on it does.
        asked: these stages; None: all of them.
    """

    confidence: float
    asked: tuple[int, ...] | None = None

    def asks(self, stage: int) -> bool:
        """Whether a stage may answer."""
        return self.asked is None or stage in self.asked


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Operations of an image.

    Attributes:
        stages: blocks of each stage, without its classifier.
        classifiers: of each stage.
    """

    stages: Sequence[int]
    classifiers: Sequence[int]

    def until(self, stage: int, asked: Collection[int]) -> int:
        """Of an image that a stage answers, after those of ``asked`` that come before it."""
        before = sum(self.classifiers[each] for each in asked if each < stage)
        return sum(self.stages[: stage + 1]) + before + self.classifiers[stage]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A part, as all stages see it: likeliest class and its probability, ``(stages, N)``; labels ``(N,)``."""

    classes: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray


def measure(seen: Seen, policy: Policy | None, *, last: int, costs: Costs) -> dict[str, Any]:
    """What a policy comes to on a part.

    Args:
        seen: the part.
        policy: None: the last stage answers all.
        last: the stage that answers whatever is left.
        costs: of an image.

    Returns:
        ``accuracy``; ``cost``, as a share of what the last stage alone takes, no classifier asked before it;
        ``answered``: the share of each stage.
    """
    asked = [stage for stage in range(last) if policy is not None and policy.asks(stage)]
    ways = np.array([*asked, last])
    sure = seen.probabilities[ways] >= (1.0 if policy is None else policy.confidence)
    sure[-1] = True
    answering = ways[sure.argmax(axis=0)]
    right = seen.classes[answering, np.arange(len(answering))] == seen.labels
    counts = np.bincount(answering, minlength=last + 1)
    operations = np.array([costs.until(stage, asked) for stage in range(last + 1)])
    return {
        "accuracy": float(right.mean()),
        "cost": float(counts @ operations / len(right) / costs.until(last, ())),
        "answered": (counts / len(right)).tolist(),
    }


def search(seen: Seen, *, last: int, costs: Costs) -> list[Policy]:
    """The policies that are right most often on a part for each of `STEPS`, cheapest first; none where no stage comes
    before the last."""
    every = slice(None, None, -(-len(seen.labels) // MOST_SAMPLES) or 1)
    seen = Seen(classes=seen.classes[:, every], probabilities=seen.probabilities[:, every], labels=seen.labels[every])
    tried = [(policy, measure(seen, policy, last=last, costs=costs)) for policy in _all(last)]
    found: dict[Policy, None] = {}
    for step in STEPS:
        within = [(each["accuracy"], -each["cost"], policy) for policy, each in tried if each["cost"] <= step]
        if within:
            found[max(within, key=lambda each: each[:2])[2]] = None
    return list(found)


def _all(last: int) -> Iterator[Policy]:
    counts = itertools.accumulate(math.comb(last, count) for count in range(1, MOST_ASKED + 1))
    most = max(1, sum(choices <= MOST_CHOICES for choices in counts))
    for count in range(1, most + 1):
        for asked in itertools.combinations(range(last), count):
            for confidence in CONFIDENCES:
                yield Policy(confidence=confidence, asked=asked)
