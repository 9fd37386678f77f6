"""What rounds come to, by hand; the benchmark itself takes minutes."""

from __future__ import annotations

import pytest

from distblock.bench.measuring import Options, main, make_outcome, workloads
from distblock.bench.turns import Turn
from distblock.errors import InputError


def test_ratios_are_of_on_over_off_within_a_round():
    rounds = [
        {"on": Turn(samples_per_s=99.0, loop_s=3e-4), "off": Turn(samples_per_s=100.0, loop_s=2e-4)},
        {"on": Turn(samples_per_s=50.0, loop_s=6e-4), "off": Turn(samples_per_s=50.0, loop_s=4e-4)},
    ]
    outcome = make_outcome({"small": rounds})
    assert outcome.ratios["samples/s, on / off, small"] == [0.99, 1.0]
    assert outcome.ratios["driver's loop, on / off, small"] == pytest.approx([1.5, 1.5])
    assert outcome.figures["small"][0]["on"] == {"samples_per_s": 99.0, "loop_s": 3e-4}


def test_a_workload_can_be_left_out():
    assert list(workloads(Options(cifar=0))) == ["8x8, batch 64"]
    with pytest.raises(InputError, match="--digits or --cifar above 0"):
        main(["--digits", "0", "--cifar", "0"])
