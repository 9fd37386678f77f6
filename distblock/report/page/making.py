"""Put the page together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from distblock.planning.crossover import PIECES, Workload, ways
from distblock.report import tables
from distblock.report.early_exits import MOST_CLASSES
from distblock.report.page import pictures
from distblock.report.page.crossover import workload
from distblock.report.page.run import Run, bubble_share
from distblock.report.times import exposed_share
from distblock.report.words import sentences


def make_page(runs: Sequence[Run]) -> str:
    """HTML of one page that needs no network.

    Args:
        runs: one or more; names need not differ.
    """
    environment = Environment(
        loader=PackageLoader("distblock.report.page", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": _or_missing(tables.size),
        "binary": tables.binary_size,
        "duration": _or_missing(tables.duration),
        "percent": tables.percent,
        "count": tables.count,
        "number": tables.number,
        "decimal": tables.decimal,
    }
    return environment.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=[_content(run) for run in runs],
        depth=[Markup(draw(runs)) for draw in (pictures.accuracy_by_depth, pictures.transport_cost_by_depth)],
        time=Markup(pictures.worker_seconds(runs)),
    )


def _content(run: Run) -> dict[str, Any]:
    """What the template shows of a run."""
    of_hops = (pictures.edge_seconds, pictures.edge_bytes) if run.stored_edges else ()
    return {
        "name": run.name,
        "summary": run.summary,
        "edges": run.edges,
        "exposed_share": exposed_share(run.summary),
        "bubble_share": bubble_share(run),
        "verdict": None if run.verdict is None else list(sentences(run.verdict)),
        "lost_share": None if run.verdict is None else 1 - run.verdict.bound_s / run.verdict.measured_s,
        "epochs": [
            Markup(pictures.by_epoch(run, column, what))
            for column, what in (
                ("validation_accuracy", "validation accuracy, %"),
                ("validation_transport_cost", "transport cost"),
            )
        ],
        "hops": [Markup(draw(run)) for draw in of_hops],
        "early_exits": None if run.early_exits is None else _early_exits(run, run.early_exits),
        "crossover": None if (work := workload(run)) is None else _crossover(run, work),
        "schedule": None if run.timeline is None else Markup(pictures.schedules(run)),
    }


def _crossover(run: Run, work: Workload) -> dict[str, Any]:
    found = [(name, way.bytes_per_sample, way.pace) for name, way in ways(work).items()]
    return {
        "picture": Markup(pictures.crossover(run, work)),
        "ways": found,
        "batch_size": work.batch_size,
        "pieces": PIECES,
    }


def _early_exits(run: Run, found: Mapping[str, Any]) -> dict[str, Any]:
    names = found["class_names"]
    rows = found["confusion"] if len(names) <= MOST_CLASSES else [[]] * len(names)
    return {
        "picture": Markup(pictures.early_exits(run, found)),
        "last": found["last_stage"],
        "columns": names if len(names) <= MOST_CLASSES else [],
        "classes": list(zip(names, found["classes"], rows, strict=True)),
    }


def _or_missing(show: Any) -> Any:
    return lambda value: tables.MISSING if value is None else show(value)
