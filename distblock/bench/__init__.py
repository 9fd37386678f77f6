"""The benchmarks behind the README's figures: ``distblock bench NAME``. Ratios taken in one run, medians of several."""

from __future__ import annotations

from collections.abc import Sequence

from distblock.bench import faults, memory, pipeline, recovery, scaling, slow_stage, wavefront
from distblock.errors import InputError

BENCHMARKS = {
    "pipeline": pipeline.main,
    "wavefront": wavefront.main,
    "slow-stage": slow_stage.main,
    "memory": memory.main,
    "faults": faults.main,
    "recovery": recovery.main,
    "scaling": scaling.main,
}
"""Each by name: a function of the remaining arguments."""


def main(arguments: Sequence[str]) -> None:
    """Run a benchmark by name.

    Raises:
        InputError: there is no such benchmark.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(
            f"usage: distblock bench NAME [...]\n\n  {', '.join(BENCHMARKS)}\n\ndistblock bench NAME --help says more."
        )
        return
    if name not in BENCHMARKS:
        raise InputError(f"bench {name}: expected one of {', '.join(BENCHMARKS)}")
    BENCHMARKS[name](arguments[1:])
