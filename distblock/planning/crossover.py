"""When to use what: samples per second of four ways to train a network on K workers, by link rate and model size.

Each way goes at the pace of its slower part: computing, or the busiest link, which carries so many bytes a sample in
one direction. Nothing else is reckoned with: no latency, no optimizer, no gain or loss of accuracy.

- Block by block: each worker's activation goes forward, under a codec. With replicas each row of them has links of its
  own; what replicas of a part exchange is left out, here and in the pipeline.
- Pipeline with back-propagation (GPipe, 1F1B): the same activation goes forward and its gradient comes back, each on
  its own direction of the link; K - 1 of M + K - 1 turns are the bubble.
- Data parallel: every worker has the whole network; a ring adds up gradients, 2 (K - 1) / K of the parameters from each
  worker a step.
- Local updates: the same once in H steps (DiLoCo, Douillard et al. 2023, arXiv:2311.08105).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distblock.config import Codec

SHARES: Mapping[tuple[Codec, ...], float] = {
    ("fp32",): 1.0,
    ("fp16", "bf16"): 1 / 2,
    ("fp8", "int8", "diff8"): 1 / 4,
    ("int4", "diff4"): 1 / 8,
    ("topk",): 1 / 10,
    ("diff2",): 1 / 16,
    ("vq",): 1 / 32,
}
"""Bytes on the wire over those of fp32, of codecs with their default settings; scales and codebooks are left out, and
so are samples that are new to a codec which remembers them."""

PIECES = 8
"""Microbatches that a pipeline with back-propagation cuts its batch into."""

STEPS = 500
"""Between two exchanges of weights: as many as in the paper on DiLoCo."""

FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network cut over K workers.

    Attributes:
        worker_s: seconds that each worker computes a sample, forward and backward.
        edge_bytes: bytes of a sample's activation, fp32, on each edge between them.
        num_parameters: of all of them.
        batch_size: samples of a step on each worker, where each has the whole network.
        replicas: workers that share each part.
    """

    worker_s: tuple[float, ...]
    edge_bytes: tuple[float, ...]
    num_parameters: int
    batch_size: int
    replicas: int = 1

    def widened(self, factor: float) -> Workload:
        """The network with so many times the channels: activations grow as they do, weights and computing by the
        square."""
        return Workload(
            worker_s=tuple(seconds * factor**2 for seconds in self.worker_s),
            edge_bytes=tuple(size * factor for size in self.edge_bytes),
            num_parameters=round(self.num_parameters * factor**2),
            batch_size=self.batch_size,
            replicas=self.replicas,
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train it.

    Attributes:
        bytes_per_sample: on the busiest link, in one direction.
        pace: samples per second if links took no time.
    """

    bytes_per_sample: float
    pace: float

    def samples_per_s(self, bytes_per_s: float) -> float:
        """Over links of a rate."""
        return min(self.pace, bytes_per_s / self.bytes_per_sample)


def ways(work: Workload) -> dict[str, Way]:
    """All of them, by name.

    Args:
        work: of two workers or more.
    """
    depth, largest = len(work.worker_s), max(work.edge_bytes) / work.replicas
    count = depth * work.replicas
    slowest_s, whole_s = max(work.worker_s) / work.replicas, sum(work.worker_s)
    # A step takes a batch on every worker, and each sends as much.
    gradients = 2 * (count - 1) / count * FP32_BYTES * work.num_parameters / (work.batch_size * count)
    blocks = {
        f"block by block, {' or '.join(codecs)}": Way(bytes_per_sample=largest * share, pace=1 / slowest_s)
        for codecs, share in SHARES.items()
    }
    return {
        **blocks,
        "pipeline, back-propagation": Way(bytes_per_sample=largest, pace=PIECES / (PIECES + depth - 1) / slowest_s),
        "data parallel": Way(bytes_per_sample=gradients, pace=count / whole_s),
        f"weights every {STEPS} steps": Way(bytes_per_sample=gradients / STEPS, pace=count / whole_s),
    }
