"""What an account says, by the catalogue's metrics: read at each scrape, so that recording counts everything once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from distblock.messages import Part
from distblock.metrics import catalogue
from distblock.metrics.accounting import Account, PassSums
from distblock.metrics.catalogue import BORDERS, Metric
from distblock.metrics.histogram import Histogram
from distblock.metrics.hops import EdgeSums, HopPath

Series = tuple[Metric, tuple[str, ...]]
"""A metric and the values of its labels, without the run's."""

INFINITE, SUM = "+Inf", "sum"
"""Of a histogram: the bound of its last bucket, and what stands for its sum in the place of a bound."""

_PHASES = ("encode", "put", "fetch", "decode")


def counters(account: Account) -> dict[Series, float]:
    """All that only grows, a histogram's buckets and sum among it, each with its bound as one more label."""
    return {**dict(_of_stages(account)), **dict(_of_edges(account))}


def gauges(account: Account) -> dict[Series, float]:
    """What each stage was at last."""
    return dict(_last_of_stages(account))


def _of_stages(account: Account) -> Iterator[tuple[Series, float]]:
    microbatches, samples = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
    for (stage, _, part), sums in account.passes.items():
        key = stage, "train" if part == "train" else "evaluate"
        microbatches[key] += sums.num_microbatches
        samples[key] += sums.num_samples
    for stage, totals in enumerate(account.totals()):
        name = str(stage)
        yield (catalogue.COMPUTE, (name,)), totals.compute_s
        yield (catalogue.REUSES, (name,)), account.reuses(stage)
        if totals.idle_s:  # a worker's first stage alone has some
            yield (catalogue.IDLE, (name,)), totals.idle_s
        for purpose in ("train", "evaluate"):
            yield (catalogue.MICROBATCHES, (name, purpose)), microbatches[stage, purpose]
            yield (catalogue.SAMPLES, (name, purpose)), samples[stage, purpose]


def _of_edges(account: Account) -> Iterator[tuple[Series, float]]:
    for edge, (sums, durations) in enumerate(zip(account.edges(), account.durations(), strict=True)):
        yield from _of_edge(sums)
        yield from _durations(sums.name, durations)
        yield (catalogue.DROPS, (sums.name,)), account.drops(edge)
        if edge > 0:
            staleness = account.staleness(edge)
            yield (catalogue.USES, (sums.name,)), staleness.uses
            yield (catalogue.STALENESS, (sums.name,)), staleness.updates


def _of_edge(sums: EdgeSums) -> Iterator[tuple[Series, float]]:
    name = sums.name
    yield (catalogue.PAST_STORE_HOPS, (name,)), sums.past_store_hops
    yield (catalogue.PAYLOAD, (name,)), sums.payload_bytes
    yield (catalogue.WIRE, (name,)), sums.wire_bytes
    yield (catalogue.EXPOSED, (name,)), sums.exposed_s
    yield (catalogue.IN_TURN, (name, "encode")), sums.encode_in_turn_s
    yield (catalogue.IN_TURN, (name, "decode")), sums.decode_in_turn_s
    yield (catalogue.BACKPRESSURE, (name,)), sums.backpressure_s
    for phase in _PHASES:
        yield (catalogue.HOP_SECONDS, (name, phase)), getattr(sums, f"{phase}_s")
    for path in get_args(HopPath):
        count = getattr(sums, f"{path}_hops")
        if count:
            yield (catalogue.HOPS, (name, path)), count


def _durations(name: str, durations: Histogram) -> Iterator[tuple[Series, float]]:
    if not durations.count:
        return
    for bound_s, count in zip(BORDERS, durations.upto(BORDERS.values()), strict=True):
        yield (catalogue.HOP_DURATION, (name, str(bound_s))), count
    yield (catalogue.HOP_DURATION, (name, INFINITE)), durations.count
    yield (catalogue.HOP_DURATION, (name, SUM)), durations.sum_s


def _last_of_stages(account: Account) -> Iterator[tuple[Series, float]]:
    last: dict[tuple[int, Part], tuple[int, PassSums]] = {}
    for (stage, epoch, part), sums in account.passes.items():
        if (stage, part) not in last or last[stage, part][0] <= epoch:
            last[stage, part] = epoch, sums
    epochs: dict[int, int] = {}
    for (stage, part), (epoch, sums) in last.items():
        epochs[stage] = max(epochs.get(stage, 0), epoch + 1)
        yield (catalogue.LOSS, (str(stage), part)), sums.loss
        yield (catalogue.ACCURACY, (str(stage), part)), sums.accuracy
        yield (catalogue.TRANSPORT_COST, (str(stage), part)), sums.transport_cost
        if sums.lr is not None:
            yield (catalogue.LEARNING_RATE, (str(stage),)), sums.lr
        if sums.multiplier is not None:
            yield (catalogue.MULTIPLIER, (str(stage),)), sums.multiplier
    for stage, epoch in epochs.items():
        yield (catalogue.EPOCH, (str(stage),)), epoch
    for stage, totals in enumerate(account.totals()):
        if totals.peak_memory_bytes:
            yield (catalogue.PEAK_MEMORY, (str(stage),)), totals.peak_memory_bytes
