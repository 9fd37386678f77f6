"""A stage's figures under stable names, for whoever logs them elsewhere."""

from __future__ import annotations

from dataclasses import asdict

from distblock.metrics.accounting import Account

OF_EDGES = ("hops", "payload_bytes", "wire_bytes", "encode_s", "put_s", "fetch_s", "decode_s", "exposed_s")


def stage_figures(account: Account, *, stage: int, epoch: int) -> dict[str, float]:
    """What is known of a stage once its validation pass has ended.

    Args:
        account: of the run.
        stage: which.
        epoch: which, counted from 0 over all laps.

    Returns:
        ``epoch``; ``stages/<stage>/<column of metrics.parquet>``, those of the epoch that have a value; and
        ``edges/<from>-to-<to>/<column of hops.parquet>``, sums so far of the edge that enters the stage.
    """
    figures: dict[str, float] = {"epoch": epoch}
    for row in account.rows():
        if (row.stage, row.epoch) == (stage, epoch):
            values = {name: value for name, value in asdict(row).items() if name not in ("stage", "epoch")}
            figures |= {f"stages/{stage}/{name}": value for name, value in values.items() if value is not None}
    edge = account.edges()[stage]
    place = edge.name.replace("->", "-to-")  # neither TensorBoard nor MLflow takes every character
    figures |= {f"edges/{place}/{name}": getattr(edge, name) for name in OF_EDGES}
    return figures
