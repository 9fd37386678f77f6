"""The scouts of a run: one on each of its nodes, asked side by side, and gone before the first worker comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ActorUnschedulableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distblock.errors import AttemptLostError
from distblock.runtime.crew import in_one_line
from distblock.runtime.nodes import Node, Nodes
from distblock.runtime.scout import Scout
from distblock.runtime.seats import Actor

PATIENCE_S = 10.0
"""Seconds between two words on which node is waited for."""


class Scouts:
    """A scout on each node, from entering the block to leaving it.

    Args:
        nodes: where; one may be named several times.
        note: is told whom is waited for.
    """

    def __init__(self, nodes: Sequence[Node], *, note: Callable[[str], None]) -> None:
        self._nodes = tuple(dict.fromkeys(nodes))
        self._note = note
        self._cluster = Nodes()
        self._actors: dict[Node, Actor] = {}

    def __enter__(self) -> Scouts:
        self._actors = {node: _start(node) for node in self._nodes}
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            ray.kill(actor)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Where they are."""
        return self._nodes

    def of(self, node: Node) -> Actor:
        """A node's."""
        return self._actors[node]

    def ask(
        self, nodes: Sequence[Node], question: Callable[[Actor], ObjectRef], *, what: str, limit_s: float
    ) -> dict[Node, Any]:
        """Ask several side by side.

        Args:
            nodes: whose.
            question: calls a scout's method.
            what: the nodes are to see, in words.
            limit_s: seconds in which all have to answer.

        Returns:
            Each node's answer, or in words that it gave none.

        Raises:
            AttemptLostError: a node has gone.
        """
        asked = {node: question(self._actors[node]) for node in dict.fromkeys(nodes)}
        waiting, end_s = list(asked.values()), time.monotonic() + limit_s
        while waiting and (left_s := end_s - time.monotonic()) > 0:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(left_s, PATIENCE_S))
            for node in (node for node, answer in asked.items() if answer in waiting):
                self._note(f"waiting for node {node} to see {what}")
        silent = f"no answer within {limit_s:g} s"
        return {node: silent if answer in waiting else self.get(node, answer) for node, answer in asked.items()}

    def get(self, node: Node, answer: ObjectRef, *, timeout_s: float | None = None) -> Any:
        """A node's answer.

        Raises:
            AttemptLostError: the node has gone.
            GetTimeoutError: there is none in time.
        """
        try:
            return ray.get(answer, timeout=timeout_s)
        except (RayActorError, ActorUnschedulableError) as error:
            kind = "node_died" if node.node_id in self._cluster.lost() else "worker_died"
            raise AttemptLostError(kind, f"node {node}, before its workers started", in_one_line(error)) from None


def _start(node: Node) -> Actor:
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(Scout).options(num_cpus=0, scheduling_strategy=there).remote(node.address)
