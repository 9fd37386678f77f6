"""``channel.codec: auto``: each edge's codec by what its line carries, settled once, before anything is trained.

A byte of activations takes a codec's seconds at both ends and the line's seconds for what is left of it. Of the codecs
that are allowed, the one with the smallest sum is taken: where encoding costs more than the line saves, none. Within a
host activations cross as they are. What was chosen is written to the run's settings, since weights depend on it: a
resumed run keeps it, whatever its lines are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from distblock.codecs.edge import kept_sample_bytes
from distblock.config import Codec, Config
from distblock.learning.blueprint import Build, draw_blueprint
from distblock.metrics.hops import edge_name
from distblock.planning.inputs import entering
from distblock.planning.profile import CodecProfile, measure_codec
from distblock.preparation import Prepared
from distblock.runtime.lines import bit_rate


def settled(
    prepared: Prepared,
    rates: Mapping[int, float | None],
    *,
    model: Build | None = None,
    note: Callable[[str], None],
) -> Prepared:
    """A run with a codec for each of its edges.

    Args:
        prepared: the run, its codec ``auto``.
        rates: of the edges that lie between two hosts, bytes a second; None: it could not be measured.
        model: the user's own network.
        note: is told what was chosen for them, and why.
    """
    channel = prepared.config.channel
    chosen: dict[int, Codec] = {**channel.edge_codecs}
    for edge, rate in sorted(rates.items()):
        if edge in chosen:
            continue
        if rate is None:
            note(f"edge {edge_name(edge)}: fp32, since its line has no rate")
            continue
        costs = _costs(prepared, edge, model)
        chosen[edge] = choose(channel.auto_codecs, costs, rate)
        note(f"edge {edge_name(edge)}: {chosen[edge]}{_why(costs, rate)}")
    own: dict[int, Codec] = {edge: codec for edge, codec in chosen.items() if codec != "fp32"}
    config = _with(prepared.config, "fp32", own)
    return replace(prepared, config=config, blueprint=draw_blueprint(config, prepared.problem, build=model))


def choose(offered: Sequence[Codec], costs: Mapping[Codec, CodecProfile], bytes_per_s: float) -> Codec:
    """The codec with which a byte of activations takes the fewest seconds; of equal ones the first."""
    return min(offered, key=lambda codec: _seconds(costs[codec], bytes_per_s))


def against_keeping(prepared: Prepared) -> Iterator[str]:
    """In words, what speaks against codecs that keep samples, on the edges that have them: images that are never the
    same, and no room for all samples."""
    channel, num_train = prepared.config.channel, prepared.plan.num_train
    augment = prepared.config.data.augment
    codecs = {edge: channel.codec_of(edge) for edge in range(len(prepared.blueprint.entering))}
    keeping = {edge: codec for edge, codec in codecs.items() if codec in channel.KEEPING}
    if augment and keeping:
        named = " and ".join(sorted(set(keeping.values())))
        yield (
            f"{named}: differences to a sample's last activation, but data.augment ({', '.join(augment)}) makes each"
            " image another one, so they are as large as activations; int8 or int4 lose less in as many bytes"
        )
    for edge, codec in keeping.items():
        sample_bytes = kept_sample_bytes(prepared.blueprint.entering[edge])
        count = channel.codec_cache_bytes // sample_bytes
        if count < num_train:
            yield (
                f"edge {edge_name(edge)}: {codec} keeps {count:,} of {num_train:,} samples at each end"
                f" (channel.codec_cache_bytes {channel.codec_cache_bytes}); the others cross as at their first time."
                f" {num_train * sample_bytes} would keep all"
            )


def as_before(config: Config, before: Config) -> Config:
    """A run that goes on keeps the codecs that it began with; what is given now beside ``auto`` stays, to be judged."""
    codecs: dict[int, Codec] = {**before.channel.edge_codecs, **config.channel.edge_codecs}
    return _with(config, before.channel.codec, codecs)


def cut_elsewhere(config: Config, before: Config, *, note: Callable[[str], None]) -> Config:
    """A run that goes on with fewer stages has fewer edges; codecs of those that are no more are left out.

    Args:
        config: the settings of now.
        before: those that the run began with.
        note: is told which.
    """
    model = config.model
    if (model.stages, model.cuts) == (before.model.stages, before.model.cuts):
        return config
    last = len(model.cuts) if model.cuts is not None else model.stages - 1 if isinstance(model.stages, int) else None
    gone = [edge for edge in config.channel.edge_codecs if last is not None and edge > last]
    if not gone:
        return config
    note(f"edges {', '.join(map(edge_name, gone))} are no more; their codecs are left out of channel.edge_codecs")
    left: dict[int, Codec] = {edge: codec for edge, codec in config.channel.edge_codecs.items() if edge not in gone}
    return _with(config, config.channel.codec, left)


def _with(config: Config, codec: Codec | Literal["auto"], edge_codecs: Mapping[int, Codec]) -> Config:
    channel = config.channel.model_copy(update={"codec": codec, "edge_codecs": dict(edge_codecs)})
    return config.model_copy(update={"channel": channel})


def _costs(prepared: Prepared, edge: int, model: Build | None) -> dict[Codec, CodecProfile]:
    config = prepared.config
    features = entering(
        config,
        prepared.problem,
        first=prepared.blueprint.partition.stages[edge].start,
        num_samples=config.data.train_microbatch,
        device=torch.device("cpu"),
        build=model,
    )
    return {codec: measure_codec(codec, features, channel=config.channel) for codec in config.channel.auto_codecs}


def _seconds(cost: CodecProfile, bytes_per_s: float) -> float:
    return cost.share / bytes_per_s + cost.encode_s + cost.decode_s


def _why(costs: Mapping[Codec, CodecProfile], rate: float) -> str:
    each = [f"{codec} {1e9 * _seconds(cost, rate):.3g}" for codec, cost in costs.items()]
    return f"; over {bit_rate(rate)} a MB of activations takes ms: {', '.join(each)}"
