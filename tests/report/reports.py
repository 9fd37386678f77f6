"""Made-up reports of a worker, for tests of who listens to a run."""

from __future__ import annotations

from distblock.messages import Item, Purpose, StageReport, WorkerReport


def report(
    number: int, *, stages: range, loss: float = 1.0, purpose: Purpose = "train", epoch: int = 0
) -> WorkerReport:
    """A microbatch of 50 samples, half of them right."""
    item = Item(
        number=number,
        purpose=purpose,
        part="train" if purpose == "train" else "validation",
        epoch=epoch,
        index=number,
        first_sample=50 * number,
        num_samples=50,
        batch_samples=50,
        closes_batch=True,
        closes_pass=False,
    )
    told = tuple(
        StageReport(
            stage=stage,
            role="train",
            loss_sum=50 * loss,
            transport_cost_sum=0.0,
            num_correct=25,
            num_samples=50,
            compute_s=0.01,
            lr=0.1,
        )
        for stage in stages
    )
    return WorkerReport(
        worker=0,
        item=item,
        stages=told,
        arrivals=(),
        departures=(),
        started_s=0.0,
        finished_s=0.0,
        idle_s=0.0,
        peak_memory_bytes=0,
        node="localhost",
    )
