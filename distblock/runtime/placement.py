"""Stages to bundles of a placement group, and whether the cluster can hold them at all.

Ray waits without a word, for ever, for a bundle that no node can hold. What a cluster has is known when we join it:
what can never fit is an error that says what is missing, before any worker starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from distblock.config import Config
from distblock.errors import InputError

T = TypeVar("T")

Resources = dict[str, float]

NODE = "node:"
"""Ray gives every node one of a resource that has the node's address behind this."""

TOUCH = 0.001
"""Of it, what a bundle asks for that is to be there."""


def bundles(config: Config, *, num_workers: int) -> list[Resources]:
    """What each worker needs, in order, then what each data worker needs: one CPU."""
    worker = {"CPU": config.resources.cpus_per_worker, "GPU": config.resources.gpus_per_worker}
    worker = {name: amount for name, amount in worker.items() if amount > 0}
    return [dict(worker) for _ in range(num_workers)] + [{"CPU": 1.0} for _ in range(config.data.workers)]


def pinned(needed: Sequence[Resources], config: Config) -> list[Resources]:
    """The same, each on its node where the settings name nodes; data workers are beside the first worker.

    Args:
        needed: the bundles of workers, then those of data workers.
        config: the run's settings.

    Raises:
        InputError: there are more nodes than workers, or fewer.
    """
    nodes = config.resources.nodes
    if not nodes:
        return list(needed)
    num_workers = len(needed) - config.data.workers
    if len(nodes) != num_workers:
        raise InputError(
            f"resources.nodes: expected a node for each of {num_workers} workers, got {len(nodes)}; name one as"
            " often as it has workers"
        )
    places = [*nodes, *[nodes[0]] * config.data.workers]
    return [{**bundle, f"{NODE}{place}": TOUCH} for bundle, place in zip(needed, places, strict=True)]


def in_rows(needed: Sequence[Resources], nodes: Sequence[Resources], config: Config) -> list[Resources]:
    """The same with one bundle for a row, a replica of every stage, where each row finds a node that can hold it.

    Then what crosses between stages stays on the row's node, and only gradients travel; Ray would fill a node with
    workers in any order. Not where workers are to be spread, nor without replicas.

    Args:
        needed: the bundles, row by row, then those of data workers.
        nodes: resources of each living node.
        config: the run's settings.
    """
    replicas, data_workers = config.replicas, config.data.workers
    if replicas == 1 or "SPREAD" in config.resources.strategy:
        return list(needed)
    length = (len(needed) - data_workers) // replicas
    rows = [_total(needed[:length]) for _ in range(replicas)]
    return [*rows, *needed[-data_workers:]] if _packs(rows, nodes) else list(needed)


def rows(bundles: Sequence[T], *, length: int, count: int) -> list[list[T]]:
    """The bundle of each worker, row by row, of bundles as `in_rows` gives them.

    Args:
        bundles: one a worker, or one a row; anything that stands for them.
        length: workers of a row.
        count: rows.
    """
    if len(bundles) == count:
        return [[bundle] * length for bundle in bundles]
    return [list(bundles[start : start + length]) for start in range(0, len(bundles), length)]


def _packs(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    left = [dict(node) for node in nodes]
    for bundle in bundles:
        node = next((node for node in left if _fits(bundle, node)), None)
        if node is None:
            return False
        for name, amount in bundle.items():
            node[name] -= amount
    return True


def check_feasible(needed: Sequence[Resources], nodes: Sequence[Resources], *, strategy: str) -> None:
    """Compare with what the cluster's nodes have in all, used or not.

    Args:
        needed: the bundles.
        nodes: resources of each living node.
        strategy: the placement group's.

    Raises:
        InputError: the bundles can never be placed.
    """
    named = {name for bundle in needed for name in bundle if name.startswith(NODE)}
    unknown = sorted(name.removeprefix(NODE) for name in named if not any(name in node for node in nodes))
    if unknown:
        raise InputError(
            f"resources.nodes: expected addresses of the cluster's nodes ({', '.join(_addresses(nodes))}), got"
            f" {unknown[0]}"
        )
    for name in ("GPU", "CPU"):
        wanted = sum(bundle.get(name, 0) for bundle in needed)
        there = sum(node.get(name, 0) for node in nodes)
        if wanted > there:
            raise InputError(
                f"resources: the run needs {wanted:g} {name}s ({_text(needed)}), but the cluster has {there:g} on"
                f" {len(nodes)} node(s); set --resources.{name.lower()}s-per-worker or --resources.workers lower"
            )
    for name in sorted(named):
        here = [bundle for bundle in needed if name in bundle]
        if not any(_fits(_total(here), node) for node in nodes):
            node = next(node for node in nodes if name in node)
            raise InputError(
                f"resources.nodes: {name.removeprefix(NODE)} is to hold {_text(here)}, but has {_text([node])}"
            )
    for bundle in needed:
        if not any(_fits(bundle, node) for node in nodes):
            raise InputError(f"resources: no node can hold one worker's {_text([bundle])}; nodes have {_text(nodes)}")
    if strategy == "STRICT_PACK" and not any(_fits(_total(needed), node) for node in nodes):
        raise InputError(
            f"resources.strategy: STRICT_PACK needs one node with {_text([_total(needed)])}; nodes have {_text(nodes)};"
            " choose PACK"
        )
    if strategy == "STRICT_SPREAD" and len(needed) > len(nodes):
        raise InputError(
            f"resources.strategy: STRICT_SPREAD needs a node for each of {len(needed)} workers and data workers, but"
            f" the cluster has {len(nodes)}; choose SPREAD"
        )


def _addresses(nodes: Sequence[Resources]) -> list[str]:
    """Of nodes; Ray names the head a second time by what it is."""
    names = {name for node in nodes for name in node if name.startswith(NODE) and not name.startswith(f"{NODE}__")}
    return sorted(name.removeprefix(NODE) for name in names)


def _fits(bundle: Resources, node: Resources) -> bool:
    return all(amount <= node.get(name, 0) for name, amount in bundle.items())


def _total(needed: Sequence[Resources]) -> Resources:
    names = sorted({name for bundle in needed for name in bundle})
    return {name: sum(bundle.get(name, 0) for bundle in needed) for name in names}


def _text(resources: Sequence[Resources]) -> str:
    texts = [" + ".join(f"{node[name]:g} {name}" for name in ("CPU", "GPU") if node.get(name)) for node in resources]
    counts = {text: texts.count(text) for text in texts}
    return ", ".join(f"{count} x {text or 'nothing'}" for text, count in counts.items())
