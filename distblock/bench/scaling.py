"""What links between hosts cost: one training on 1, 2 and 4 hosts, whose links have a rate and a delay.

The hosts are namespaces of this machine and share its cores, so more of them do not compute faster: what is seen is
what the same workers lose where activations have to cross a link. A training lasts so many seconds and not so many
epochs, because links of 20 Mbit/s and of 10 Gbit/s are too far apart for one number of samples. Workers are as many as
stages everywhere, and every host has just so many CPUs that the placement group has to lie over all of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distblock.bench.on_hosts import bits_per_s, check_hosts, cut_images, train_on_hosts
from distblock.bench.outcome import Outcome, Outputs, conclude, keep_line, read_options
from distblock.bench.pictures import Bars
from distblock.errors import InputError

FORWARDER_BITS_PER_S = 420e6
"""What a link with a delay carries at most: its forwarder is a Python process."""


@dataclass(frozen=True, kw_only=True)
class Options(Outputs):
    """Samples a second, exposed communication and the line's use, by hosts, rate and delay."""

    data_path: str | None = None
    """folder with images as Parquet, of which the first are taken; default: scikit-learn's digits"""
    images: int = 1024
    """how many of them"""
    model: str = "resnet8"
    """network"""
    stages: int = 3
    """stages, a worker each"""
    batch_size: int = 32
    """samples a microbatch"""
    seconds: float = 15.0
    """time of training of each cell"""
    hosts: tuple[int, ...] = (1, 2, 4)
    """numbers of hosts; a single one has no link, and is the measure of the others"""
    rates: tuple[str, ...] = ("20mbit", "100mbit", "1gbit", "none")
    """rates of every host's link, as tc writes them; none: as fast as memory is copied"""
    delays_ms: tuple[float, ...] = (0.0, 25.0)
    """milliseconds from host to host, each way"""
    log: str | None = None
    """write every cell as a line of JSON here as it ends: nothing is lost if the rest is cut short"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is varied.

    Attributes:
        rate: of every host's link, as tc writes it, or None.
        delay_ms: from host to host, each way.
    """

    hosts: int
    rate: str | None = None
    delay_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EdgeFigures:
    """One edge of one run.

    Attributes:
        has_crossed: whether it lay between two hosts.
        bytes_per_s: wire bytes over the run's seconds.
        exposed_of_run: seconds in which the receiver idled for it, over the run's.
        exposed_of_fetch: those seconds over all of fetching and decoding.
        line_rate_bytes_per_s: of the line it lay on, measured; None within a host.
    """

    name: str
    has_crossed: bool
    bytes_per_s: float
    exposed_of_run: float
    exposed_of_fetch: float
    line_rate_bytes_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One cell, measured.

    Attributes:
        samples_per_s: that came to the last stage, in evaluations too, over the run's seconds; every microbatch counts
            as a whole one.
        edges: the one from the data first.
    """

    cell: Cell
    wall_s: float
    samples_per_s: float
    edges: tuple[EdgeFigures, ...]

    @property
    def busiest(self) -> EdgeFigures | None:
        """Of the edges between hosts."""
        return max((edge for edge in self.edges if edge.has_crossed), key=lambda edge: edge.bytes_per_s, default=None)

    @property
    def share_of_line(self) -> float | None:
        """What the busiest edge carried, over what its line carried at best."""
        edge = self.busiest
        return edge.bytes_per_s / edge.line_rate_bytes_per_s if edge and edge.line_rate_bytes_per_s else None


def main(arguments: Sequence[str]) -> None:
    """``distblock bench scaling``.

    Raises:
        InputError: an option that cannot be, or hosts cannot be made here.
        RunFailedError: a training failed.
    """
    options = read_options(Options, "scaling", arguments)
    cells = make_cells(options)
    check_hosts()
    measured = []
    with tempfile.TemporaryDirectory(prefix="distblock-scaling-") as folder:
        if options.data_path is not None:
            cut_images(options.data_path, Path(folder), train=options.images, test=options.batch_size)
        for cell in cells:
            measured.append(_measure(options, cell, Path(folder)))
            _log(options, measured[-1])
    Console(width=140).print(make_table(options, measured))
    conclude("scaling", options, make_outcome(measured))


def make_outcome(measured: Sequence[Figures]) -> Outcome:
    """Ratios are over one host, where that was measured."""
    one = next((each.samples_per_s for each in measured if each.cell.hosts == 1), None)
    bars: dict[str, dict[str, float]] = {}
    ratios: dict[str, list[float]] = {}
    for each in measured:
        hosts = f"{each.cell.hosts} host{'s' if each.cell.hosts > 1 else ''}"
        link = f"{each.cell.rate or 'unlimited'}, {each.cell.delay_ms:g} ms" if each.cell.hosts > 1 else "no link"
        bars.setdefault(hosts, {})[link] = each.samples_per_s
        if one is not None and each.cell.hosts > 1:
            ratios[f"{hosts}, {link} / one host"] = [each.samples_per_s / one]
    return Outcome(
        figures=[{**asdict(each), "share_of_line": each.share_of_line} for each in measured],
        ratios=ratios,
        picture=Bars(title="hosts and links", unit="samples/s", bars=bars),
    )


def make_cells(options: Options) -> list[Cell]:
    """Every number of hosts with every rate and delay; but one host has no link, and one cell.

    Raises:
        InputError: a number that cannot be, or a rate of another form.
    """
    if options.stages < 1 or options.seconds <= 0 or any(number < 1 for number in options.hosts):
        raise InputError("bench scaling: expected stages, seconds and hosts above 0")
    if max(options.hosts) > options.stages + 1:
        raise InputError(
            f"--hosts: expected no more than {options.stages + 1}, one for each of {options.stages} stages and one for"
            f" the data worker, got {max(options.hosts)}"
        )
    if options.data_path is not None and not 0 < options.batch_size <= options.images / 2:
        raise InputError(f"--images: expected two batches or more, {2 * options.batch_size}, got {options.images}")
    for rate in options.rates:
        bits_per_s(rate)
    links = [(rate, delay_ms) for delay_ms in options.delays_ms for rate in options.rates]
    cells = []
    for number in options.hosts:
        if number == 1:
            cells.append(Cell(hosts=1))
        else:
            cells += [Cell(hosts=number, rate=None if rate == "none" else rate, delay_ms=ms) for rate, ms in links]
    return cells


def make_figures(summary: dict[str, Any], cell: Cell, *, batch_size: int, line_rate: float | None) -> Figures:
    """Of a run's summary.

    Args:
        summary: it.
        cell: what was varied.
        batch_size: samples a microbatch.
        line_rate: bytes a second between two hosts, where the summary does not know them by edge.
    """
    wall_s = summary["wall_s"]
    edges = [summary["data_edge"], *summary["edges"]]
    return Figures(
        cell=cell,
        wall_s=wall_s,
        samples_per_s=edges[-1]["hops"] * batch_size / wall_s,
        edges=tuple(_edge(edge, wall_s=wall_s, line_rate=line_rate) for edge in edges),
    )


def _edge(edge: dict[str, Any], *, wall_s: float, line_rate: float | None) -> EdgeFigures:
    has_crossed = edge["cross_node_hops"] > 0
    return EdgeFigures(
        name=edge["name"],
        has_crossed=has_crossed,
        bytes_per_s=edge["wire_bytes"] / wall_s,
        exposed_of_run=edge["exposed_s"] / wall_s,
        exposed_of_fetch=edge["exposed_s"] / max(edge["fetch_s"] + edge["decode_s"], 1e-9),
        line_rate_bytes_per_s=(edge.get("line_rate_bytes_per_s") or line_rate) if has_crossed else None,
    )


def _measure(options: Options, cell: Cell, folder: Path) -> Figures:
    ran = train_on_hosts(
        _flags(options, folder),
        cpus=[math.ceil((options.stages + 1) / cell.hosts)] * cell.hosts,
        rate=cell.rate,
        # A microbatch passes two links.
        delay_s=cell.delay_ms / 2000,
        shared=folder,
    )
    return make_figures(ran.summary, cell, batch_size=options.batch_size, line_rate=ran.line_rate_bytes_per_s)


def _flags(options: Options, folder: Path) -> list[str]:
    values: dict[str, object] = {
        "model.name": options.model,
        "model.stages": options.stages,
        "data.batch-size": options.batch_size,
        "regime.epochs": 100_000,
        "regime.evaluate-every": 100_000,
        "regime.max-time-s": options.seconds,
        "optimizer.schedule": "constant",
        # They would cross the links as well.
        "checkpoint.every-s": "none",
    }
    if options.data_path is not None:
        share = options.batch_size / options.images
        values |= {"data.name": "parquet", "data.path": folder, "data.validation": share}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def _log(options: Options, figures: Figures) -> None:
    keep_line(options.log, {**asdict(figures), "share_of_line": figures.share_of_line})


def make_table(options: Options, measured: Sequence[Figures]) -> Table:
    """A row a cell."""
    names = ", ".join(edge.name for edge in measured[0].edges)
    table = Table(
        title=f"{options.model}, {options.stages} stages and workers, batches of {options.batch_size},"
        f" {options.seconds:g} s of training a cell; exposed: on {names}"
    )
    headings = (
        *("hosts", "link", "delay", "samples/s", "of one host", "exposed, % of run", "exposed, % of fetch"),
        *("busiest edge", "Mbit/s", "line, Mbit/s", "of the line"),
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    one = next((each.samples_per_s for each in measured if each.cell.hosts == 1), None)
    for each, following in zip(measured, [*measured[1:], None], strict=True):
        is_last = following is None or following.cell.hosts != each.cell.hosts
        table.add_row(*_row(each, one), end_section=is_last)
    table.caption = _note([each.cell for each in measured])
    return table


def _row(figures: Figures, one: float | None) -> list[str]:
    cell, edge, share = figures.cell, figures.busiest, figures.share_of_line
    return [
        str(cell.hosts),
        "" if cell.hosts == 1 else cell.rate or "unlimited",
        "" if cell.hosts == 1 else f"{cell.delay_ms:g} ms",
        f"{figures.samples_per_s:.0f}",
        "" if one is None else f"{figures.samples_per_s / one:.2f}",
        " ".join(f"{100 * each.exposed_of_run:.0f}" for each in figures.edges),
        " ".join(f"{100 * each.exposed_of_fetch:.0f}" for each in figures.edges),
        "" if edge is None else edge.name,
        "" if edge is None else f"{edge.bytes_per_s * 8e-6:.1f}",
        "" if edge is None or edge.line_rate_bytes_per_s is None else f"{edge.line_rate_bytes_per_s * 8e-6:.0f}",
        "" if share is None else f"{share:.0%}",
    ]


def _note(cells: Sequence[Cell]) -> str:
    note = "fetch: fetching and decoding; busiest: the edge between two hosts with most bytes a second"
    if any(cell.delay_ms and bits_per_s(cell.rate or "none") > FORWARDER_BITS_PER_S for cell in cells):
        note += (
            f"; with a delay a link carries {FORWARDER_BITS_PER_S / 1e6:.0f} Mbit/s at most, whatever its rate, since"
            " a process forwards it, which takes its share of the cores, too"
        )
    return note
