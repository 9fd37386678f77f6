"""What every benchmark does once it has measured: write JSON, draw a picture, compare ratios with the expected ones.

Seconds differ from machine to machine and from day to day; ratios taken in one run hold. So ``expectations.json`` has
ratios alone, with the options that they hold for.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from distblock.bench.pictures import Picture, draw
from distblock.errors import InputError, RunFailedError
from distblock.flags import check_folder

EXPECTATIONS = Path(__file__).with_name("expectations.json")

VERSIONS_OF = ("distblock", "ray", "torch", "numpy")

Ratios = Mapping[str, Sequence[float]]
"""By name, one or more a run of the benchmark: as a rule one a round, taken within it."""

Verdict = Literal["pass", "fail", "not measured", "no expectation"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What every benchmark can be asked for; its options are built on this."""

    output: str | None = None
    """write machine, versions, options, figures and ratios as JSON here"""
    picture: str | None = None
    """draw the figures as SVG here"""
    check: bool = False
    """compare the ratios with what is expected of them; exit status 1 if one falls short"""


O = TypeVar("O", bound=Outputs)  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a benchmark has measured.

    Attributes:
        figures: anything that JSON can hold.
        ratios: what it is for, by name.
        picture: the figures.
    """

    figures: Any
    ratios: Ratios
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A ratio's median beside what is expected of it.

    Attributes:
        value: None: it was not measured.
        expected: in words; empty for none.
    """

    name: str
    value: float | None
    expected: str
    verdict: Verdict


def read_options(kind: type[O], name: str, arguments: Sequence[str]) -> O:
    """A benchmark's options from the command line.

    Raises:
        InputError: what is to be written has no folder, or there is nothing to check; found before an hour is spent.
    """
    options = tyro.cli(kind, args=list(arguments), prog=f"distblock bench {name}")
    if options.check and not expectation(name)[1]:
        raise InputError(f"--check: expected a benchmark of which ratios are expected, got {name}, of which none are")
    for key in ("output", "picture", "log"):
        path = getattr(options, key, None)
        if path is not None:
            check_folder(path, where=f"--{key}")
    return options


def keep_line(path: str | None, content: Mapping[str, Any]) -> None:
    """Write a line of JSON behind those that are there: nothing is lost if the rest is cut short.

    Args:
        path: the file; None: nobody asked for one.
        content: of the line.
    """
    if path is not None:
        with Path(path).open("a") as file:
            file.write(f"{json.dumps(content)}\n")


def tell(path: str | None, key: str, name: str, figures: Mapping[str, float]) -> None:
    """A run is over that took minutes, and there are more: say what it gave, and keep it.

    Args:
        path: as for `keep_line`.
        key, name: what was measured: a case, a codec, a link.
        figures: of it.
    """
    print(f"{name}: {', '.join(f'{what} {value:.0f}' for what, value in figures.items())}", file=sys.stderr)
    keep_line(path, {key: name, **figures})


def conclude(name: str, options: Outputs, outcome: Outcome) -> None:
    """Write, draw and compare, as the options ask.

    Args:
        name: the benchmark, as on the command line.
        options: all of its options.
        outcome: what it has measured.

    Raises:
        RunFailedError: a ratio is not what is expected, or none of those expected was measured.
    """
    if options.output is not None:
        Path(options.output).write_text(json.dumps(content(name, options, outcome), indent=2))
    if options.picture is not None:
        draw(outcome.picture, Path(options.picture))
    if options.check:
        _check(name, outcome.ratios)


def content(name: str, options: Outputs, outcome: Outcome) -> dict[str, Any]:
    """What the JSON holds."""
    return {
        "benchmark": name,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{each: version(each) for each in VERSIONS_OF}},
        "options": asdict(options),
        "figures": outcome.figures,
        "ratios": {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}
            for key, values in outcome.ratios.items()
        },
    }


def machine() -> dict[str, Any]:
    """What it was measured on; no names."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": platform.system(),
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def findings(ratios: Ratios, expected: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    """Every ratio measured, then those expected and not measured.

    Args:
        ratios: what was measured.
        expected: by name; ``at_least``, ``at_most`` or both.
    """
    found = []
    for name, values in ratios.items():
        value, bounds = statistics.median(values), expected.get(name)
        verdict: Verdict = "no expectation"
        if bounds is not None:
            # A ratio that is no number is within no bounds.
            holds = bounds.get("at_least", float("-inf")) <= value <= bounds.get("at_most", float("inf"))
            verdict = "pass" if holds else "fail"
        found.append(Finding(name=name, value=value, expected=_words(bounds or {}), verdict=verdict))
    missing = [name for name in expected if name not in ratios]
    return found + [
        Finding(name=name, value=None, expected=_words(expected[name]), verdict="not measured") for name in missing
    ]


def expectation(name: str) -> tuple[str, dict[str, dict[str, float]]]:
    """The options that a benchmark's expected ratios hold for, and the ratios."""
    entry = json.loads(EXPECTATIONS.read_text()).get(name, {"options": "", "ratios": {}})
    return entry["options"], entry["ratios"]


def _check(name: str, ratios: Ratios) -> None:
    options, expected = expectation(name)
    found = findings(ratios, expected)
    Console(width=140).print(_table(f"distblock bench {name} {options}".strip(), found))
    failed = [finding.name for finding in found if finding.verdict == "fail"]
    if failed:
        raise RunFailedError(f"bench {name}: {len(failed)} of {len(found)} ratios fall short: {', '.join(failed)}")
    if not any(finding.verdict == "pass" for finding in found):
        raise RunFailedError(f"bench {name}: none of the expected ratios was measured; the table names them")


def _table(command: str, found: Sequence[Finding]) -> Table:
    table = Table(title=f"expected of: {command}")
    for heading in ("ratio", "median", "expected", ""):
        table.add_column(heading, justify="right" if heading == "median" else "left")
    for finding in found:
        value = "" if finding.value is None else f"{finding.value:.3f}"
        table.add_row(finding.name, value, finding.expected, finding.verdict)
    return table


def _words(bounds: Mapping[str, float]) -> str:
    return " and ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in bounds.items())
