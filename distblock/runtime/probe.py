"""One worker by itself, fed from memory: what its own computing allows."""

from __future__ import annotations

import ray
import torch
from ray import ObjectRef

from distblock.codecs.cast import encode
from distblock.codecs.payload import Payload
from distblock.codecs.staging import Staging
from distblock.learning.allocator import jemalloc_here
from distblock.learning.host import HostSpec
from distblock.messages import Item, Parcel, WorkerReport
from distblock.runtime.cluster import joined, placed
from distblock.runtime.crew import start_worker
from distblock.runtime.handover import Told
from distblock.runtime.placement import bundles

AHEAD = 2
"""Microbatches that the worker is given beyond the one it computes."""


def run_alone(spec: HostSpec, items: list[Item]) -> list[WorkerReport]:
    """Pass random features through one worker's stages, with no other worker on the machine.

    Args:
        spec: what the worker hosts.
        items: training microbatches, numbered from 0.

    Returns:
        A report per microbatch.
    """
    needed = bundles(spec.config, num_workers=1)[:1]
    with joined(spec.config, needed), placed(needed, strategy="PACK", note=print) as group:
        worker = start_worker(spec, 0, group, bundle=0, jemalloc=jemalloc_here())
        try:
            ray.get(worker.ready.remote())
            pending: list[ObjectRef] = []
            told: list[Told] = []
            for item in items:
                payload = ray.put((random_payload(spec, item),))
                pending.append(worker.hop.options(num_returns=2).remote(Parcel((item,)), [payload], item.number)[1])
                if len(pending) > AHEAD:
                    told.append(ray.get(pending.pop(0)))
            told += ray.get(pending)
            return [report for each in told for report in each.reports if isinstance(report, WorkerReport)]
        finally:
            ray.kill(worker)


def random_payload(spec: HostSpec, item: Item) -> Payload:
    """What might enter a worker's first stage."""
    generator = torch.Generator().manual_seed(item.number)
    shapes = spec.blueprint.entering[spec.stages.start]
    tensors = tuple(torch.randn(item.num_samples, *shape, generator=generator) for shape in shapes)
    return encode(
        tensors[0] if len(tensors) == 1 else tensors,
        torch.randint(spec.problem.num_classes, (item.num_samples,), generator=generator),
        codec="fp32",
        run=spec.run,
        edge=spec.stages.start,
        number=item.number,
        staging=Staging(torch.device("cpu")),
    )
