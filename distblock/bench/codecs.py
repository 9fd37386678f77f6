"""What each codec costs, loses and saves: bytes and error of an edge's activations, and samples per second over a link.

Bytes, seconds and errors are taken in this process, from the activations that cross the first edge while the network
trains: those of a first epoch, in which a sample crosses for the first time, and those of the last. With ``--hosts``
the pipeline runs over a throttled link, once with each codec a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distblock.bench import linked
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options, tell
from distblock.bench.pictures import Bars
from distblock.bench.workers import WARM_UP, Settings, prepare_run, training_items, whole_spec
from distblock.codecs.cast import Features, named_tensors
from distblock.codecs.edge import EdgeCodec, Microbatch
from distblock.config import ChannelConfig, Codec
from distblock.errors import InputError
from distblock.learning.host import Host

BASELINE: Codec = "fp32"


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Bytes, seconds and error of each codec, and what it gains over a link."""

    data_path: Annotated[str, tyro.conf.arg(help="folder with CIFAR-10 as train.parquet and test.parquet")]
    codecs: tuple[Codec, ...] = ("fp32", "bf16", "fp8", "int8", "int4", "diff8", "diff4", "diff2", "topk", "vq")
    """which; all are compared with fp32"""
    model: str = "resnet20"
    """network, in two stages"""
    batch_size: int = 128
    """samples a microbatch"""
    epochs: int = 10
    """of 8 microbatches each, whose activations are looked at"""
    augment: bool = False
    """crop and flip"""
    hosts: bool = False
    """over a link, too: each worker on a host of its own (cluster/hosts; root, from a checkout)"""
    rate: str = "20mbit"
    """with --hosts: of every host's link, as tc writes it"""
    microbatches: int = 32
    """with --hosts: microbatches a round that count"""
    rounds: int = 3
    """with --hosts: rounds; medians are printed"""
    log: str | None = None
    """with --hosts: write every run as a line of JSON here as it ends: nothing is lost if the rest is cut short"""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a codec does to the activations of an edge.

    Attributes:
        bytes_per_sample: that cross in the last epoch, labels and what names the samples included.
        first_error, last_error: norm of what is lost over that of the activations, in the first and the last epoch.
        encode_s, decode_s: of a microbatch, medians.
    """

    bytes_per_sample: float
    first_error: float
    last_error: float
    encode_s: float
    decode_s: float


Speeds = Mapping[str, Mapping[str, float]]
"""Of one round: by codec, samples per second, and those of the smaller of the two bounds."""


def main(arguments: Sequence[str]) -> None:
    """``distblock bench codecs --data-path DIR``.

    Raises:
        InputError: an option that cannot be, or hosts cannot be made here.
        RunFailedError: a run failed, or, with --check, a ratio fell short.
    """
    options = read_options(Options, "codecs", arguments)
    if min(options.batch_size, options.microbatches, options.rounds) < 1 or options.epochs < 2:
        raise InputError("bench codecs: expected sizes and rounds above 0, and two epochs or more")
    if BASELINE not in options.codecs:
        raise InputError(f"--codecs: expected {BASELINE} among them, which all are compared with")
    if options.hosts:
        linked.check(2, options.rate)
    losses = {codec: measure_loss(options, codec) for codec in options.codecs}
    rounds = [_over_a_link(options) for _ in range(options.rounds)] if options.hosts else []
    Console(width=140).print(_table(options, losses, rounds))
    conclude("codecs", options, make_outcome(options, losses, rounds))


def measure_loss(options: Options, codec: Codec) -> Loss:
    """Train for some epochs in this process, and look at what crosses the edge."""
    torch.set_num_threads(1)
    prepared = prepare_run(_settings(options, codec, microbatches=options.epochs * WARM_UP))
    spec = whole_spec(prepared)
    host = Host(spec, clock=time.perf_counter)
    watch = _Watched(host.edges[1], spec.config.channel)
    host.edges[1] = watch
    for item in training_items(prepared, options.epochs * WARM_UP):
        images, labels = prepared.data.microbatch(item)
        samples = prepared.data.samples(item)
        host.work(item, torch.from_numpy(images), torch.from_numpy(labels), samples=samples)
    last = watch.seen[-WARM_UP:]
    return Loss(
        bytes_per_sample=statistics.mean(each["bytes"] for each in last),
        first_error=statistics.mean(each["error"] for each in watch.seen[:WARM_UP]),
        last_error=statistics.mean(each["error"] for each in last),
        encode_s=statistics.median(each["encode_s"] for each in watch.seen),
        decode_s=statistics.median(each["decode_s"] for each in watch.seen),
    )


class _Watched(EdgeCodec):
    """Sends to a second end of its own, and looks at what arrives there."""

    def __init__(self, sender: EdgeCodec, channel: ChannelConfig) -> None:
        self.__dict__.update(sender.__dict__)
        self._receiver = EdgeCodec(channel, run=self._run, edge=self._edge, seed=self._seed, staging=self._staging)
        self.seen: list[dict[str, float]] = []

    def round_trip(self, features: Features, microbatch: Microbatch) -> Features:
        begun_s = time.perf_counter()
        labels = torch.zeros(microbatch.item.num_samples, dtype=torch.int64)
        payload = self.encode(features, labels, microbatch)
        encoded_s = time.perf_counter()
        arrived, _ = self._receiver.decode(payload, microbatch)
        decoded_s = time.perf_counter()
        self.seen.append(
            {
                "bytes": payload.wire_bytes / microbatch.item.num_samples,
                "error": _error(arrived, features),
                "encode_s": encoded_s - begun_s,
                "decode_s": decoded_s - encoded_s,
            }
        )
        return arrived


def _error(arrived: Features, features: Features) -> float:
    pairs = zip(named_tensors(arrived), named_tensors(features), strict=True)
    lost, whole = zip(*((_square(out - given), _square(given)) for (_, out), (_, given) in pairs), strict=True)
    return (sum(lost) / sum(whole)) ** 0.5


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _settings(options: Options, codec: Codec, *, microbatches: int) -> Settings:
    return Settings(
        data_path=options.data_path,
        model=options.model,
        stages=2,
        workers=2,
        batch_size=options.batch_size,
        microbatches=microbatches,
        codec=codec,
        augment=options.augment,
        alone=False,
    )


def _over_a_link(options: Options) -> Speeds:
    """A round, on fresh hosts for each codec."""
    found = {}
    for codec in options.codecs:
        settings = _settings(options, codec, microbatches=options.microbatches)
        with linked.on_hosts(linked.Link(rate=options.rate, delay_ms=0.0), settings) as (_, rates, carried):
            found[codec] = {
                "samples_per_s": rates.pipeline,
                "bound": min(rates.bound, carried),
                "wire_bytes_per_sample": rates.wire_bytes_per_sample,
            }
        tell(options.log, "codec", codec, found[codec])
    return found


def make_outcome(options: Options, losses: Mapping[str, Loss], rounds: Sequence[Speeds]) -> Outcome:
    """Bytes, and, over a link, samples per second, as ratios to fp32's."""
    base = losses[BASELINE]
    ratios = {
        f"fp32 / {codec}, bytes": [base.bytes_per_sample / loss.bytes_per_sample]
        for codec, loss in losses.items()
        if codec != BASELINE
    }
    for codec in options.codecs if rounds else ():
        if codec != BASELINE:
            key = f"{codec} / fp32, samples/s at {options.rate}"
            ratios[key] = [each[codec]["samples_per_s"] / each[BASELINE]["samples_per_s"] for each in rounds]
        key = f"{codec} / the smaller bound, samples/s at {options.rate}"
        ratios[key] = [each[codec]["samples_per_s"] / each[codec]["bound"] for each in rounds]
    bars = {"bytes a sample": {codec: loss.bytes_per_sample for codec, loss in losses.items()}}
    if rounds:
        bars = {f"samples/s at {options.rate}": {codec: _median(rounds, codec) for codec in options.codecs}}
    [unit] = bars
    figures = {"losses": {codec: vars(loss) for codec, loss in losses.items()}, "rounds": list(rounds)}
    picture = Bars(title=f"{options.model}, first of two stages", unit=unit, bars=bars)
    return Outcome(figures=figures, ratios=ratios, picture=picture)


def _median(rounds: Sequence[Speeds], codec: str) -> float:
    return statistics.median(each[codec]["samples_per_s"] for each in rounds)


def _table(options: Options, losses: Mapping[str, Loss], rounds: Sequence[Speeds]) -> Table:
    crops = "crops and flips" if options.augment else "no augmentation"
    title = f"{options.model} in 2 stages, microbatches of {options.batch_size}, {crops}"
    table = Table(title=f"{title}; {options.rounds} rounds over a link of {options.rate}" if rounds else title)
    headings = ["codec", "bytes a sample", "fp32 / it", "error, first epoch", "last epoch", "encode", "decode"]
    for heading in [*headings, *(["samples/s", "it / fp32", "it / bound"] if rounds else [])]:
        table.add_column(heading, justify="right")
    base = losses[BASELINE].bytes_per_sample
    for codec, loss in losses.items():
        cells = [
            codec,
            f"{loss.bytes_per_sample:,.0f}",
            f"{base / loss.bytes_per_sample:.2f}",
            f"{loss.first_error:.2%}",
            f"{loss.last_error:.2%}",
            f"{loss.encode_s * 1000:.1f} ms",
            f"{loss.decode_s * 1000:.1f} ms",
        ]
        if rounds:
            gain = statistics.median(r[codec]["samples_per_s"] / r[BASELINE]["samples_per_s"] for r in rounds)
            share = statistics.median(r[codec]["samples_per_s"] / r[codec]["bound"] for r in rounds)
            cells += [f"{_median(rounds, codec):.0f}", f"{gain:.2f}", f"{share:.3f}"]
        table.add_row(*cells)
    return table
