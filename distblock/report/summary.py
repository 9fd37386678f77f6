"""summary.json: what a run came to, under keys that other programs may rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distblock.config import Config
from distblock.learning.blueprint import Blueprint
from distblock.learning.stage import arrays_sha256
from distblock.messages import Inputs, Line
from distblock.metrics.accounting import Account, StageRow
from distblock.metrics.hops import EdgeSums
from distblock.metrics.staleness import StalenessSums


def summarize(
    config: Config,
    blueprint: Blueprint,
    account: Account,
    state: Mapping[int, Mapping[str, np.ndarray]],
    *,
    wall_s: float,
    inputs: Inputs | None = None,
    peak_bytes: int = 0,
    lines: Sequence[Line] = (),
) -> dict[str, Any]:
    """Put a finished run together.

    The stage to keep is the one of highest accuracy on the last validation pass (the earliest of equals), never on the
    test part.

    Args:
        config: the run's settings.
        blueprint: its network.
        account: its sums.
        state: the final weights and buffers, by stage, then by name.
        wall_s: seconds from the first microbatch to the last.
        inputs: what stages trained on, where they train one by one.
        peak_bytes: most bytes of caches or frozen copies at once.
        lines: what the edges between two hosts lay on in the end.
    """
    last_rows = _last_rows(account.rows())
    stages = [_stage(blueprint, account, row, state[stage]) for stage, row in sorted(last_rows.items())]
    best = max(stages, key=lambda stage: (stage["val_accuracy"], -stage["index"]))
    line_of = {line.edge: line for line in lines}
    data_edge, *edges = [
        {
            **_edge(sums),
            **_age(account.staleness(edge), drops=account.drops(edge)),
            **_line(line_of.get(edge), sums, wall_s=wall_s),
        }
        for edge, sums in enumerate(account.edges())
    ]
    if inputs == "cache":
        edges = [{**edge, "transport": "cache file"} for edge in edges]
    return {
        "regime": config.regime.name,
        "executor": config.executor,
        "seed": config.seed,
        "num_stages": blueprint.num_stages,
        "num_workers": len(blueprint.hosts) * config.workers_per_stage,
        "replicas": config.replicas,
        "wall_s": wall_s,
        "samples_per_s": account.samples_trained / wall_s,
        "epochs": last_rows[0].epoch + 1,
        "laps": config.regime.laps,
        "inputs": inputs,
        "set_aside_peak_bytes": peak_bytes,
        "best_stage": best["index"],
        "droppable_stages": list(range(best["index"] + 1, len(stages))),
        "test_accuracy": best["test_accuracy"],
        "stages": stages,
        "edges": edges,
        "data_edge": data_edge,
        "failures": [asdict(failure) for failure in account.failures],
    }


def _last_rows(rows: list[StageRow]) -> dict[int, StageRow]:
    """Each stage's last epoch: the one that the final evaluations belong to."""
    return {row.stage: row for row in sorted(rows, key=lambda row: row.epoch)}


def _stage(blueprint: Blueprint, account: Account, row: StageRow, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    blocks = blueprint.partition.stages[row.stage]
    totals = account.stage_totals(row.stage)
    return {
        "index": row.stage,
        "blocks": [blueprint.block_names[block] for block in blocks],
        "num_parameters": blueprint.num_parameters[row.stage],
        "train_loss": row.train_loss,
        "train_accuracy": row.train_accuracy,
        "val_loss": row.validation_loss,
        "val_accuracy": row.validation_accuracy,
        "test_loss": row.test_loss,
        "test_accuracy": row.test_accuracy,
        "transport_cost": row.validation_transport_cost,
        "compute_s": totals.compute_s,
        "idle_s": totals.idle_s,
        "reuses": account.reuses(row.stage),
        "peak_memory_bytes": totals.peak_memory_bytes,
        "weights_sha256": arrays_sha256(state),
    }


def _edge(sums: EdgeSums) -> dict[str, Any]:
    return {
        "name": sums.name,
        "transport": "in process" if sums.in_process else "object store",
        "hops": sums.hops,
        "same_node_hops": sums.same_node_hops,
        "cross_node_hops": sums.cross_node_hops,
        "payload_bytes": sums.payload_bytes,
        "wire_bytes": sums.wire_bytes,
        "encode_s": sums.encode_s,
        "put_s": sums.put_s,
        "fetch_s": sums.fetch_s,
        "decode_s": sums.decode_s,
        "exposed_s": sums.exposed_s,
        "overlapped_s": sums.overlapped_s,
        "backpressure_s": sums.backpressure_s,
    }


def _age(staleness: StalenessSums, *, drops: int) -> dict[str, Any]:
    return {"staleness_mean": staleness.mean, "staleness_max": staleness.largest, "drops": drops}


def _line(line: Line | None, sums: EdgeSums, *, wall_s: float) -> dict[str, Any]:
    """What the edge lay on, and which share of it its traffic took; None where both ends were on one host."""
    return {
        "sender_node": line and line.sender,
        "receiver_node": line and line.receiver,
        "sender_interface": line and line.sender_interface,
        "receiver_interface": line and line.receiver_interface,
        "sender_speed_bytes_per_s": line and line.sender_speed_bytes_per_s,
        "receiver_speed_bytes_per_s": line and line.receiver_speed_bytes_per_s,
        "line_rate_bytes_per_s": line and line.rate_bytes_per_s,
        "line_share": line and line_share(line, sums, wall_s=wall_s),
    }


def line_share(line: Line, sums: EdgeSums, *, wall_s: float) -> float | None:
    """What crossed the network on an edge, over what its line could have carried meanwhile; None: that is not known."""
    if line.rate_bytes_per_s is None or not sums.hops:
        return None
    crossed_bytes = sums.wire_bytes * sums.cross_node_hops / sums.hops
    return crossed_bytes / (wall_s * line.rate_bytes_per_s)
