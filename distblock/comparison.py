"""Several settings, each run with several seeds: accuracy with its interval, beside what it cost.

Each run is a process of its own, so that its memory is its own; runs are interleaved by seed, so that a machine that
is slow for an hour is slow for all of them. A run that is there already is not run again: a comparison that was
interrupted goes on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from distblock.config import Config, make_config, read_values
from distblock.consoles import for_tables
from distblock.errors import InputError, RunFailedError
from distblock.flags import merge, parse_flags, take_options, whole_number
from distblock.report.pictures import draw_accuracy_by_depth
from distblock.report.tables import duration, size
from distblock.statistics import CONFIDENCE, interval

HELP = """usage: distblock compare A.yaml B.yaml ... [--seeds N] [--max-time-s S] [--folder DIR] [--picture FILE.svg]
                         [--KEY VALUE ...]

  --seeds N        runs of each setting, with seeds 0 to N - 1 (default 3)
  --max-time-s S   the same limit of wall time for all of them
  --folder DIR     where the runs lie (default runs/compare); runs that are there already are not run again
  --picture FILE   draw test accuracy by depth there, as SVG
  --KEY VALUE      a setting laid over all of them"""

OPTIONS = ("--seeds", "--max-time-s", "--folder", "--picture")


def main(arguments: Sequence[str]) -> None:
    """``distblock compare``."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP)
        return
    files, options, flags = _split(arguments)
    seeds = whole_number(options.get("--seeds", "3"), where="compare --seeds")
    overlay = parse_flags(flags)
    if "--max-time-s" in options:
        overlay = merge(overlay, {"regime": {"max_time_s": options["--max-time-s"]}})
    settings = {Path(file).stem: merge(read_values(file), overlay) for file in files}
    if len(settings) < len(files):
        raise InputError(f"compare: expected files with different names, got {' '.join(files)}")
    for values in settings.values():
        _check(values)
    summaries = run_all(settings, seeds=seeds, folder=Path(options.get("--folder", "runs/compare")))
    console = for_tables(140)
    console.print(costs_table(summaries))
    console.print(depth_table(summaries))
    if "--picture" in options:
        depths = {
            name: [[stage["test_accuracy"] for stage in run["stages"]] for run in runs]
            for name, runs in summaries.items()
        }
        draw_accuracy_by_depth(depths, Path(options["--picture"]))


def run_all(settings: Mapping[str, dict[str, Any]], *, seeds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run every setting with every seed.

    Args:
        settings: keys and values by name.
        seeds: seeds 0 to seeds - 1.
        folder: a run directory ``NAME-SEED`` each is made there, with ``NAME-SEED.log`` beside it.

    Returns:
        The summaries by name, in the order of seeds.

    Raises:
        RunFailedError: a run failed; its log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    for seed in range(seeds):
        for name, values in settings.items():
            summaries[name].append(_run(folder / f"{name}-{seed}", {**values, "seed": seed}))
    return summaries


def costs_table(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """A row a setting: accuracy on the test part, and what it cost: what crosses between blocks as it is, and what was
    sent of it by its codec from worker to worker."""
    table = Table(title=f"test accuracy: mean and {CONFIDENCE:.0%} interval of the mean over seeds")
    headings = ("chosen stage", "last stage", "wall time", "worker-hours", "memory a worker", "between blocks", "sent")
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    for name, runs in summaries.items():
        wall_s = statistics.mean(run["wall_s"] for run in runs)
        hours = statistics.mean(run["wall_s"] * run["num_workers"] / 3600 for run in runs)
        peak = max(stage["peak_memory_bytes"] for run in runs for stage in run["stages"])
        crossed, sent = (
            statistics.mean(sum(edge[key] for edge in run["edges"]) for run in runs)
            for key in ("payload_bytes", "wire_bytes")
        )
        table.add_row(
            name,
            interval([run["test_accuracy"] for run in runs]),
            interval([run["stages"][-1]["test_accuracy"] for run in runs]),
            duration(wall_s),
            f"{hours:.3f}",
            size(peak),
            size(crossed),
            size(sent),
        )
    return table


def depth_table(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Test accuracy of each stage, a column a setting."""
    table = Table(title="test accuracy by depth")
    table.add_column("stage", justify="right")
    for name in summaries:
        table.add_column(name, justify="right")
    for stage in range(max(runs[0]["num_stages"] for runs in summaries.values())):
        cells = [
            interval([run["stages"][stage]["test_accuracy"] for run in runs]) if stage < runs[0]["num_stages"] else ""
            for runs in summaries.values()
        ]
        table.add_row(str(stage), *cells)
    return table


def _run(directory: Path, values: dict[str, Any]) -> dict[str, Any]:
    summary = directory / "summary.json"
    if not summary.exists():
        file = directory.parent / f"{directory.name}.yaml"
        file.write_text(yaml.safe_dump({**values, "run_dir": str(directory)}))
        with (directory.parent / f"{directory.name}.log").open("w") as log:
            command = [sys.executable, "-m", "distblock", "train", "--config", str(file)]
            status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if status != 0:
            raise RunFailedError(
                f"compare: the run {directory.name} ended with status {status}; {log.name} says why. Its directory may"
                " have to be removed before it is run again"
            )
    return json.loads(summary.read_text())


def _check(values: dict[str, Any]) -> Config:
    for key in ("seed", "run_dir"):
        if key in values:
            raise InputError(f"compare: expected no {key} in the settings, which it chooses itself, got {values[key]}")
    return make_config(values)


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Files, options of compare itself, and flags of settings."""
    words = list(arguments)
    first_flag = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    files = words[:first_flag]
    given, flags = take_options(words[first_flag:], OPTIONS)
    options = {name: values[-1] for name, values in given.items()}
    if not files:
        raise InputError("compare: expected YAML files of settings, got none; see distblock compare --help")
    return files, options, flags
