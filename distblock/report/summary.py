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
from distblock.report.edges import edge_figures


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
    memcpy_bytes_per_s: float | None = None,
    driver_busy_s: float = 0.0,
    driver_microbatches: int = 0,
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
        memcpy_bytes_per_s: what copying in memory makes on the slowest host.
        driver_busy_s: seconds in which the driver did not wait.
        driver_microbatches: of the calls whose ends it handled, each once for each worker that it passed.
    """
    last_rows = _last_rows(account.rows())
    stages = [_stage(blueprint, account, row, state[stage]) for stage, row in sorted(last_rows.items())]
    best = max(stages, key=lambda stage: (stage["val_accuracy"], -stage["index"]))
    data_edge, *edges = edge_figures(
        account, lines, wall_s=wall_s, inputs=inputs, memcpy_bytes_per_s=memcpy_bytes_per_s
    )
    if not config.metrics.record:
        data_edge, edges = None, []
    return {
        "regime": config.regime.name,
        "executor": config.executor,
        "seed": config.seed,
        "num_stages": blueprint.num_stages,
        "num_workers": len(blueprint.hosts) * config.workers_per_stage,
        "replicas": config.replicas,
        "worker_stages": [stages.start for stages in blueprint.hosts],
        "wall_s": wall_s,
        "samples_per_s": account.samples_trained / wall_s,
        "num_samples": account.samples_passed,
        "epochs": last_rows[0].epoch + 1,
        "laps": config.regime.laps,
        "inputs": inputs,
        "set_aside_peak_bytes": peak_bytes,
        "memcpy_bytes_per_s": memcpy_bytes_per_s,
        "driver_busy_s": driver_busy_s,
        "driver_microbatches": driver_microbatches,
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
    totals = account.totals()[row.stage]
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
