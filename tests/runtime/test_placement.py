"""Bundles and what can never be placed: pure functions, no cluster."""

from __future__ import annotations

import pytest

from distblock.config import make_config
from distblock.errors import InputError
from distblock.runtime.placement import TOUCH, bundles, check_feasible, in_rows, pinned


def test_bundles_by_hand():
    config = make_config({"resources": {"gpus_per_worker": 0.5, "cpus_per_worker": 2}, "data": {"workers": 2}})
    assert bundles(config, num_workers=2) == [{"CPU": 2, "GPU": 0.5}] * 2 + [{"CPU": 1}] * 2


@pytest.mark.parametrize(
    ("nodes", "strategy", "rows"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], "PACK", True),
        ([{"CPU": 7.0}], "STRICT_PACK", True),
        # Three workers a row, and no node holds three of them beside another row.
        ([{"CPU": 5.0}, {"CPU": 2.0}], "PACK", False),
        ([{"CPU": 4.0}, {"CPU": 3.0}], "SPREAD", False),
    ],
)
def test_a_row_of_replicas_is_one_bundle_where_it_fits(nodes: list[dict[str, float]], strategy: str, rows: bool):
    config = make_config({"replicas": 2, "resources": {"strategy": strategy}})
    needed = bundles(config, num_workers=6)
    whole = [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0}]
    assert in_rows(needed, nodes, config) == (whole if rows else needed)
    alone = make_config({})
    assert in_rows(needed[:4], nodes, alone) == needed[:4]


NODES = [{"CPU": 2.0, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}, {"CPU": 4.0, "node:10.0.0.2": 1.0}]


def named(*nodes: str) -> list[dict[str, float]]:
    """Two workers and a data worker."""
    config = make_config({"resources": {"nodes": list(nodes)}})
    return pinned(bundles(config, num_workers=2), config)


def test_each_worker_on_the_node_that_is_named_for_it():
    assert named("10.0.0.1", "10.0.0.2") == [
        {"CPU": 1.0, "node:10.0.0.1": TOUCH},
        {"CPU": 1.0, "node:10.0.0.2": TOUCH},
        {"CPU": 1.0, "node:10.0.0.1": TOUCH},
    ]
    check_feasible(named("10.0.0.1", "10.0.0.2"), NODES, strategy="PACK")
    with pytest.raises(InputError, match="a node for each of 2 workers, got 1"):
        named("10.0.0.1")


def test_nodes_that_are_not_there_or_too_small():
    with pytest.raises(InputError, match=r"addresses of the cluster's nodes \(10.0.0.1, 10.0.0.2\), got 10.0.0.3"):
        check_feasible(named("10.0.0.1", "10.0.0.3"), NODES, strategy="PACK")
    with pytest.raises(InputError, match=r"10.0.0.1 is to hold 3 x 1 CPU, but has 1 x 2 CPU"):
        check_feasible(named("10.0.0.1", "10.0.0.1"), NODES, strategy="PACK")


@pytest.mark.parametrize(
    ("needed", "nodes", "strategy", "message"),
    [
        ([{"CPU": 1, "GPU": 1}] * 3, [{"CPU": 8, "GPU": 2}], "PACK", r"needs 3 GPUs .* has 2 on 1 node"),
        ([{"CPU": 3}] * 2, [{"CPU": 4}], "PACK", "needs 6 CPUs"),
        ([{"CPU": 3}] * 2, [{"CPU": 2}] * 4, "PACK", "no node can hold one worker's 1 x 3 CPU"),
        ([{"CPU": 1}] * 4, [{"CPU": 2}] * 2, "STRICT_PACK", "STRICT_PACK needs one node with 1 x 4 CPU"),
        ([{"CPU": 1}] * 3, [{"CPU": 2}] * 2, "STRICT_SPREAD", "a node for each of 3 .* has 2"),
    ],
)
def test_what_can_never_be_placed(
    needed: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str, message: str
):
    with pytest.raises(InputError, match=message):
        check_feasible(needed, nodes, strategy=strategy)


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_what_fits(strategy: str):
    check_feasible([{"CPU": 1.0, "GPU": 0.5}] * 2, [{"CPU": 4.0, "GPU": 1.0}] * 2, strategy=strategy)
