"""What a hop costs by size: distblock's two transports, Ray's plain way for a torch tensor, and plain memcpy.

Two actors hand activations to and fro, by the functions and in the manner of a worker, and compute nothing: through the
object store, and from worker to worker, where the store takes them as well, for whoever takes over. *Put* is what
storing the encoded activation took at its sender, *fetch* what getting it took at its receiver, both on their own
clocks. The mark is one memcpy of the same bytes into shared memory whose pages nobody has touched; the store uses pages
again, so a put may take less.

The *whole hop* is what the driver sees: from asking one of the actors for a hop to the hop's report. In it the actor
fetches and decodes the activation that the other has handed out, passes through its computing thread, encodes and
stores its own. *One by one* is the median of that, one hop after the other, and the empty call beside it that of a call
without arguments of the same two actors in turn. *In a stream* eight such chains are under way at once (fewer where
their activations would come to more than 64 MiB): wall seconds over hops, which is what one more hop costs a pipeline
that is busy, and the empty call beside it wall seconds over calls of eight chains of empty calls. *N a call*: a call
takes in and hands out so many activations, together, as a parcel: one object. What is smaller than 100 KiB Ray sends
inside calls, by way of the driver: the whole hop sees that, put and fetch do not.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import ray
from rich.console import Console
from rich.table import Table

from distblock.bench.hops import ray_perf
from distblock.bench.hops.direct import measure_direct
from distblock.bench.hops.figures import INLINE_BYTES, ratios, size_figures, spread
from distblock.bench.hops.relay import TRANSPORTS, Way
from distblock.bench.hops.rounds import Round, measure, relays
from distblock.bench.on_hosts import CHECKOUT, check_hosts, line_rate
from distblock.bench.outcome import Outcome, Outputs, conclude, read_options
from distblock.bench.pictures import Lines
from distblock.errors import InputError, RunFailedError
from distblock.report.tables import binary_size, duration

WAYS: tuple[Way, ...] = get_args(Way)

UNITS = {"": 1, "k": 2**10, "m": 2**20}

STORE_BYTES = 4 * 2**30
"""Of each host's object store."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Latency and bandwidth of a hop by size."""

    sizes: tuple[str, ...] = ("1k", "4k", "16k", "64k", "256k", "1m", "4m", "8m", "16m", "64m", "256m")
    """of the activation, fp32; k and m are powers of 1024"""
    rounds: int = 7
    """rounds that count; the ratios' medians are taken over them"""
    per_call: tuple[int, ...] = (1, 8)
    """microbatches a call, in streams"""
    ray_perf: bool = False
    """Ray's own microbenchmark beside it: two minutes more"""
    keep_memory: bool = False
    """the two actors take the allocator of distblock's workers, which keeps what is freed, instead of Ray's own"""
    direct: bool = False
    """Ray Direct Transport over gloo beside it"""
    address: str | None = None
    """a Ray cluster to measure in; default: an embedded Ray"""
    apart: bool = False
    """the two workers on two nodes of the cluster"""
    hosts: bool = False
    """two hosts of this machine (cluster/hosts; root, from a checkout), a worker on each"""
    rate: str = "none"
    """with --hosts: of each host's link, as tc writes it; none: as fast as memory is copied"""
    delay_ms: float = 0.0
    """with --hosts: milliseconds from host to host, each way"""
    line_rate: float | None = None
    """with --apart: bytes a second of the line between the nodes, if that is known; measured with --hosts"""


def main(arguments: Sequence[str]) -> None:
    """``distblock bench hop``.

    Raises:
        InputError: an option that cannot be, or hosts cannot be made here.
        RunFailedError: with --check, a ratio fell short.
    """
    options = read_options(Options, "hop", arguments)
    sizes = [parse_size(word) for word in options.sizes]
    if min(*options.per_call, options.rounds) < 1:
        raise InputError("bench hop: expected --rounds and --per-call above 0")
    if options.hosts:
        _on_hosts(options, arguments)
        return
    if options.line_rate is not None and not options.apart:
        raise InputError("--line-rate: expected --apart with it, got it alone")
    if options.apart and options.address is None:
        raise InputError("--apart: expected --address of a cluster with two nodes or more, or --hosts, got neither")
    with relays(options.address, apart=options.apart, keep_memory=options.keep_memory) as actors:
        rounds = measure(
            *(actors, sizes), rounds=options.rounds, per_call=options.per_call, line_rate=options.line_rate
        )
        direct: dict[int, list[float]] = {}
        if options.direct:
            nodes = ray.get([actor.make.remote(0) for actor in actors])
            direct = measure_direct(sizes, nodes, rounds=options.rounds)
    outcome = make_outcome(options, rounds, direct)
    console = Console(width=140)
    for way in TRANSPORTS:
        console.print(_table(options, outcome, way))
    console.print(_ways_table(outcome))
    for way in TRANSPORTS:
        console.print(_streams_table(outcome, way))
    if options.direct:
        console.print(_direct_table(outcome))
    for test, rate in outcome.figures["ray_perf_per_second"].items():
        console.print(f"Ray's own microbenchmark: {test}: {rate:,.1f} per second")
    conclude("hop", options, outcome)


def parse_size(word: str) -> int:
    """Bytes of ``64k``.

    Raises:
        InputError: it is no size, or not of whole fp32 numbers.
    """
    match = re.fullmatch(r"(\d+)([km]?)", word.lower())
    num_bytes = int(match[1]) * UNITS[match[2]] if match else 0
    if num_bytes < 4 or num_bytes % 4:
        raise InputError(f"--sizes: expected multiples of 4 bytes such as 64k or 8m, got {word}")
    return num_bytes


def make_outcome(
    options: Options, rounds: Sequence[Round], direct: Mapping[int, Sequence[float]] | None = None
) -> Outcome:
    """Of all rounds.

    Args:
        options: of the benchmark.
        rounds: as measured.
        direct: seconds of hops by Ray Direct Transport, by size.
    """
    direct = direct or {}
    sizes = [size_figures(rounds, size) for size in rounds[0].sizes]
    lines = {f"{way}: put + fetch": _by_size(sizes, "ways", way, "put_and_fetch_s", "p50") for way in WAYS}
    lines["numpy: put"] = _by_size(sizes, "numpy_put_s", "p50")
    lines["memcpy into fresh shared memory"] = _by_size(sizes, "memcpy_fresh_s", "p50")
    for way in TRANSPORTS:
        lines[f"{way}: whole hop, one by one"] = _by_size(sizes, "ways", way, "hop_s", "p50")
    if direct:
        lines["Ray Direct Transport: whole hop, one by one"] = {
            float(size): statistics.median(seconds) for size, seconds in direct.items()
        }
    where = "; between nodes" if options.apart else ""
    of_direct = {
        f"Ray Direct Transport / {way}, whole hop, {binary_size(size)}{where}": [
            statistics.median(seconds) / lines[f"{way}: whole hop, one by one"][size]
        ]
        for size, seconds in direct.items()
        for way in TRANSPORTS
    }
    return Outcome(
        figures={
            "sizes": sizes,
            "empty_call_s": vars(spread([value for each in rounds for value in each.call_s])),
            "streamed_empty_call_s": vars(spread([each.streamed_call_s for each in rounds])),
            "direct_hop_s": {size: vars(spread(seconds)) for size, seconds in direct.items()},
            "line_rate_bytes_per_s": options.line_rate,
            "ray_perf_per_second": ray_perf.per_second() if options.ray_perf else {},
        },
        ratios={**ratios(rounds, line_rate=options.line_rate, where=where), **of_direct},
        picture=Lines(title=_title(options), across="bytes of the activation", upward="seconds, median", lines=lines),
    )


def _by_size(sizes: Sequence[dict[str, Any]], *keys: str) -> dict[float, float]:
    found = {}
    for each in sizes:
        value: Any = each
        for key in keys:
            value = value[key]
        found[float(each["bytes"])] = value
    return found


def _on_hosts(options: Options, arguments: Sequence[str]) -> None:
    """The same command on the first of two hosts; its workers are on one each."""
    check_hosts()
    from cluster.hosts import HostSettings, Link, hosts

    # An activation passes both links.
    link = Link(rate=None if options.rate == "none" else options.rate, delay_s=options.delay_ms / 2000)
    files = {key: Path(path).absolute() for key in ("output", "picture") if (path := getattr(options, key))}
    with hosts(
        [HostSettings(cpus=2, link=link)] * 2,
        shared=list({path.parent for path in files.values()}),
        object_store_bytes=STORE_BYTES,
    ) as fleet:
        there = [*arguments, "--no-hosts", "--apart", "--address", fleet.address]
        there += [word for key, path in files.items() for word in (f"--{key}", str(path))]
        there += ["--line-rate", str(line_rate(fleet))]
        command = [sys.executable, "-m", "distblock", "bench", "hop", *there]
        done = fleet.run(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunFailedError(f"bench hop: on hosts: {done.stderr[-500:]}")


def _title(options: Options) -> str:
    where = "two nodes" if options.apart else "same node"
    if options.line_rate is not None:
        where += f", line {options.line_rate * 8e-6:.0f} Mbit/s"
    where += ", memory is kept" if options.keep_memory else ""
    return f"a hop by size, fp32, {where}, {options.rounds} rounds"


def _table(options: Options, outcome: Outcome, way: Way) -> Table:
    table = Table(title=f"{way}: {_title(options)}")
    mark = "memcpy" if options.line_rate is None else "line"
    headings = ("size", "hops", "hop: min", "p50", "p99", "p99.9", "encode", "put", "fetch", "decode", "GB/s")
    for heading in (*headings, f"of {mark}"):
        table.add_column(heading, justify="right")
    for each in outcome.figures["sizes"]:
        own = each["ways"][way]
        table.add_row(
            binary_size(each["bytes"]),
            str(own["hop_s"]["count"]),
            *(duration(own["hop_s"][key]) for key in ("min", "p50", "p99", "p999")),
            *(duration(own[f"{key}_s"]["p50"]) for key in ("encode", "put", "fetch", "decode")),
            f"{each['bytes'] / own['hop_s']['p50'] * 1e-9:.3f}",
            _of_mark(options, each, way),
        )
    table.caption = "hop: one by one, at the driver; parts: medians; GB/s: bytes over the whole hop"
    return table


def _of_mark(options: Options, size: dict[str, Any], way: Way) -> str:
    """Speed of put and fetch over memcpy's, or of the fetch over the line's."""
    if size["bytes"] <= INLINE_BYTES:
        return ""
    own = size["ways"][way]
    if options.line_rate is None:
        return f"{size['memcpy_fresh_s']['p50'] / own['put_and_fetch_s']['p50']:.2f}"
    return f"{size['bytes'] / own['fetch_s']['p50'] / options.line_rate:.2f}"


def _ways_table(outcome: Outcome) -> Table:
    table = Table(title="put and fetch by way, medians")
    headings = ("size", "memcpy, fresh", "memcpy, again", "numpy put", *WAYS)
    for heading in (*headings, "store / memcpy, fresh", "torch tensor / store", "store / worker to worker"):
        table.add_column(heading, justify="right")
    for each in outcome.figures["sizes"]:
        name = binary_size(each["bytes"])
        seconds = [each[key]["p50"] for key in ("memcpy_fresh_s", "memcpy_again_s", "numpy_put_s")]
        seconds += [each["ways"][way]["put_and_fetch_s"]["p50"] for way in WAYS]
        fresh, *_, ours, past, plain = seconds
        shares = (ours / fresh, plain / ours, ours / past)
        table.add_row(name, *(duration(value) for value in seconds), *(f"{share:.2f}" for share in shares))
    return table


def _direct_table(outcome: Outcome) -> Table:
    table = Table(title="a whole hop, one by one, medians")
    for heading in ("size", *TRANSPORTS, "Ray Direct Transport, gloo", "of the store", "of worker to worker"):
        table.add_column(heading, justify="right")
    for each in outcome.figures["sizes"]:
        ours, past = (each["ways"][way]["hop_s"]["p50"] for way in TRANSPORTS)
        theirs = outcome.figures["direct_hop_s"][each["bytes"]]["p50"]
        shares = (f"{theirs / own:.2f}" for own in (ours, past))
        table.add_row(binary_size(each["bytes"]), *(duration(value) for value in (ours, past, theirs)), *shares)
    return table


def _streams_table(outcome: Outcome, way: Way) -> Table:
    figures = outcome.figures
    one, streamed = figures["empty_call_s"]["p50"], figures["streamed_empty_call_s"]["p50"]
    table = Table(
        title=f"{way}: a whole hop, medians; an empty call: {duration(one)}, in a stream {duration(streamed)}"
    )
    table.add_column("size", justify="right")
    numbers = list(figures["sizes"][0]["streamed_s"][way])
    for heading in ("one by one", *(f"in a stream, {number} a call" for number in numbers)):
        table.add_column(heading, justify="right")
        table.add_column("/ empty call", justify="right")
    for each in figures["sizes"]:
        values = [(each["ways"][way]["hop_s"]["p50"], one)]
        own = each["streamed_s"][way]
        values += [(own[n]["p50"], streamed) for n in numbers if n in own]
        cells = [cell for value, empty in values for cell in (duration(value), f"{value / empty:.2f}")]
        table.add_row(binary_size(each["bytes"]), *cells)
    return table
