"""The benchmarks behind the README's figures: ``distblock bench NAME``. Ratios taken in one run, medians of several."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from distblock.errors import InputError

BENCHMARKS = {
    "hop": "hop",
    "driver": "driver",
    "why": "why",
    "measuring": "measuring",
    "parcels": "parcels",
    "pipeline": "pipeline",
    "codecs": "codecs",
    "plan": "plan",
    "partitions": "partitions",
    "simulate": "simulate",
    "wavefront": "wavefront",
    "slow-stage": "slow_stage",
    "memory": "memory",
    "faults": "faults",
    "recovery": "recovery",
    "scaling": "scaling",
    "new-classes": "new_classes",
}
"""Module of each, by name; its ``main`` takes the remaining arguments. Imported when asked for: some of their processes
are to be small."""


def main(arguments: Sequence[str]) -> None:
    """Run a benchmark by name.

    Raises:
        InputError: there is no such benchmark.
        RunFailedError: it failed, or, with ``--check``, one of its ratios fell short.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(
            f"usage: distblock bench NAME [...]\n\n  {', '.join(BENCHMARKS)}\n\ndistblock bench NAME --help says more."
        )
        return
    if name not in BENCHMARKS:
        raise InputError(f"bench {name}: expected one of {', '.join(BENCHMARKS)}")
    import_module(f"distblock.bench.{BENCHMARKS[name]}").main(arguments[1:])
