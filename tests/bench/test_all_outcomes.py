"""What each benchmark concludes, of measurements made up by hand; the benchmarks themselves take minutes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from distblock.bench import (
    BENCHMARKS,
    codecs,
    faults,
    memory,
    new_classes,
    parcels,
    partitions,
    plan,
    recovery,
    scaling,
    simulate,
    slow_stage,
    wavefront,
    why,
)
from distblock.bench.outcome import EXPECTATIONS, Outcome, Outputs, content, keep_line
from distblock.bench.pictures import draw
from distblock.bench.turns import Turn
from distblock.errors import InputError
from distblock.messages import Failure
from distblock.report.verdict import TWICE, Cause, Verdict, WhatIf


def check(outcome: Outcome, folder: Path) -> Outcome:
    """It can be written and drawn."""
    json.dumps(content("made-up", Outputs(), outcome))
    draw(outcome.picture, folder / "picture.svg")
    assert (folder / "picture.svg").stat().st_size > 1000
    return outcome


def test_memory(tmp_path: Path):
    outcome = check(
        memory.make_outcome({1: [1000], 2: [700, 600], 4: [400, 300, 200, 100]}, {2: 800, 4: 500}), tmp_path
    )
    assert outcome.ratios["largest worker / end-to-end, 4 stages"] == [0.4]
    assert outcome.ratios["one worker, one stage at a time / end-to-end, 2 stages"] == [0.8]


def test_wavefront(tmp_path: Path):
    walls = {"cache/multi-lap": 10.0, "cache/wavefront": 7.0, "frozen/multi-lap": 20.0, "frozen/wavefront": 15.0}
    rounds = [{key: {"wall_s": wall_s, "steps_s": 1.0} for key, wall_s in walls.items()}] * 2
    outcome = check(wavefront.make_outcome(rounds), tmp_path)
    assert outcome.ratios["wavefront / one stage at a time, cache"] == [0.7, 0.7]
    assert outcome.ratios["wavefront / one stage at a time, frozen"] == [0.75, 0.75]


def test_slow_stage(tmp_path: Path):
    paces = {("parallel", 0.0): 10, ("asynchronous", 0.0): 10, ("parallel", 0.2): 4, ("asynchronous", 0.2): 9}
    runs = {key: {"fresh_per_s": [pace, pace / 2]} for key, pace in paces.items()}
    outcome = check(slow_stage.make_outcome(runs), tmp_path)
    assert outcome.ratios["stage 0 beside a slow one / nobody slow, parallel"] == [0.4]
    assert outcome.ratios["stage 0 beside a slow one / nobody slow, asynchronous"] == [0.9]


def test_recovery(tmp_path: Path):
    rates = (100.0, 98.0, 80.0, 60.0)
    cases = zip(recovery.CASES, rates, strict=True)
    runs = [recovery._Run(case=case, wall_s=1.0, samples_per_s=r, checkpoints=1, failures=()) for case, r in cases]
    outcome = check(recovery.make_outcome([runs]), tmp_path)
    assert outcome.ratios["checkpoints / no checkpoints"] == [0.98]
    assert outcome.ratios["all from the last checkpoint / no checkpoints"] == [0.6]


def test_faults(tmp_path: Path):
    failures = [{"kind": "worker_died", "held_up_s": seconds} for seconds in (1.0, 3.0)]
    runs = [{"regime": "parallel", "is_equal": is_equal, "failures": failures} for is_equal in (True, False)]
    outcome = check(faults.make_outcome(runs), tmp_path)
    assert outcome.ratios == {"runs with the same weights": [1.0, 0.0]}
    assert outcome.figures["num_faults"] == 4


def test_scaling(tmp_path: Path):
    cells = [scaling.Cell(hosts=1), scaling.Cell(hosts=2, rate="20mbit", delay_ms=25.0), scaling.Cell(hosts=2)]
    measured = [
        scaling.Figures(cell=cell, wall_s=1.0, samples_per_s=pace, edges=())
        for cell, pace in zip(cells, (100.0, 25.0, 90.0), strict=True)
    ]
    outcome = check(scaling.make_outcome(measured), tmp_path)
    assert outcome.ratios == {
        "2 hosts, 20mbit, 25 ms / one host": [0.25],
        "2 hosts, unlimited, 0 ms / one host": [0.9],
    }


def test_why(tmp_path: Path):
    cause = Cause(kind="worker", where="worker 1", place=2, seconds=4.0)
    about: dict[str, Any] = {"samples_per_s": 1.0, "bound_s": 1.0, "slowest": "worker 1", "what_ifs": ()}
    verdict = Verdict(measured_s=10.0, replayed_s=10.0, causes=(cause,), **about)
    trials = [why.Trial(planted=planted, verdict=verdict, without_s=5.0) for planted in ("stage", "data")]
    outcome = check(why.make_outcome(trials), tmp_path)
    assert outcome.ratios["stage: named"] == [1.0]
    assert outcome.ratios["data: named"] == [0.0]
    assert outcome.ratios["stage: seconds"] == [4 / 5]
    assert outcome.ratios["stage: what if"] == [6 / 5]
    # A stage as quick as the next slowest need not be what it is without the cause.
    assert replace(trials[0], made_s=6.0).what_if_ratio == 6 / 6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hosts", "--rate", "none"], "--rate: expected that of a throttled link, such as 20mbit, got none"),
        (["--hosts", "--rate", "0mbit"], "--rate: expected that of a throttled link, such as 20mbit, got 0mbit"),
        (["--causes", "edge"], "--causes: expected edge to be left to --hosts"),
    ],
)
def test_a_link_that_is_none_is_refused(arguments: list[str], expected: str):
    with pytest.raises(InputError, match=expected):
        why.main(arguments)


def test_a_link_that_is_twice_as_fast_is_the_what_if_of_a_throttled_one():
    cause = Cause(kind="edge", where="edge 0->1", place=2, seconds=9.0)
    twice = (WhatIf(change=TWICE, samples_per_s=18.0), WhatIf(change="activations sent as bf16", samples_per_s=1.0))
    about: dict[str, Any] = {"samples_per_s": 10.0, "bound_s": 1.0, "slowest": "worker 1", "what_ifs": twice}
    verdict = Verdict(measured_s=18.0, replayed_s=18.0, causes=(cause,), **about)
    trial = why.Trial(planted="edge", verdict=verdict, without_s=6.0, made_s=8.0)
    assert trial.is_named
    assert trial.seconds_ratio == 9 / 12
    assert trial.what_if_ratio == 10 / 8


def test_codecs(tmp_path: Path):
    sizes = {"fp32": 4000.0, "int8": 1000.0}
    losses = {
        name: codecs.Loss(bytes_per_sample=size, first_error=0.1, last_error=0.1, encode_s=0.001, decode_s=0.001)
        for name, size in sizes.items()
    }
    speeds = {"fp32": 100.0, "int8": 350.0}
    rounds = [{name: {"samples_per_s": pace, "bound": pace} for name, pace in speeds.items()}] * 2
    options = codecs.Options(data_path="DIR", codecs=("fp32", "int8"), hosts=True)
    outcome = check(codecs.make_outcome(options, losses, rounds), tmp_path)
    assert outcome.ratios["fp32 / int8, bytes"] == [4.0]
    assert outcome.ratios["int8 / fp32, samples/s at 20mbit"] == [3.5, 3.5]
    here = check(codecs.make_outcome(options, losses, []), tmp_path)
    assert list(here.ratios) == ["fp32 / int8, bytes"]


def test_plan(tmp_path: Path):
    figures = {
        "planned_samples_per_s": 90.0,
        "samples_per_s": 100.0,
        "planned_memory_bytes": 6e8,
        "memory_bytes": 5e8,
        "line_bytes_per_s": float("nan"),
    }
    names = [case.name for case in plan.CASES]
    assert len(set(names)) == len(names) >= 12
    outcome = check(plan.make_outcome({names[0]: [figures]}), tmp_path)
    assert outcome.ratios[f"samples/s, {names[0]}"] == [0.9]
    assert outcome.ratios[f"memory, {names[0]}"] == [1.2]


def test_simulate(tmp_path: Path):
    rounds = [{"measured_s": 10.0, "simulated_s": 9.8, "slowest_s": 0.3}]
    outcome = check(simulate.make_outcome({4: rounds, 16: rounds}), tmp_path)
    assert outcome.ratios["simulated / measured, 16 workers"] == pytest.approx([0.98])


def test_every_benchmark_can_be_asked_for_the_same():
    from importlib import import_module

    for module in BENCHMARKS.values():
        options = import_module(f"distblock.bench.{module}").Options
        assert issubclass(options, Outputs), module


def test_expectations_are_of_benchmarks_and_have_bounds():
    expected = cast("dict[str, Any]", json.loads(EXPECTATIONS.read_text()))
    assert set(expected) <= set(BENCHMARKS)
    for entry in expected.values():
        assert entry["ratios"]
        for bounds in entry["ratios"].values():
            assert bounds
            assert set(bounds) <= {"at_least", "at_most"}


def test_a_failure_has_what_faults_reads():
    assert {"kind", "held_up_s", "replayed"} <= set(Failure.__dataclass_fields__)


@pytest.mark.parametrize("option", ["--output", "--picture"])
def test_a_file_without_a_folder_is_refused_before_anything_runs(option: str, tmp_path: Path):
    with pytest.raises(InputError, match=f"{option}: expected a file in a folder that is there"):
        memory.main([option, str(tmp_path / "no" / "file")])
    with pytest.raises(InputError, match="--log: expected a file in a folder that is there"):
        faults.main(["--log", str(tmp_path / "no" / "file")])


def test_new_classes(tmp_path: Path):
    names = [f"{method}, 20 a class, new alone" for method in ("tau 1", "greedy", "end-to-end")]
    results = [
        new_classes.Result(case=name, seed=seed, before=0.8, old=old, new=0.5)
        for name, old in zip(names, (0.3, 0.1, 0.2), strict=True)
        for seed in range(2)
    ]
    outcome = check(new_classes.make_outcome(results), tmp_path)
    assert outcome.ratios["accuracy, tau 1 / greedy, 20 a class, new alone"] == pytest.approx([0.4 / 0.3] * 2)
    assert new_classes.make_table(results).row_count == 3


def test_new_classes_goes_on_with_what_its_log_has(tmp_path: Path):
    options = new_classes.Options(data_path="DIR", log=str(tmp_path / "log.jsonl"))
    assert new_classes.read_log(options) == {}
    result = new_classes.Result(case="greedy, 20 a class, new alone", seed=1, before=0.8, old=0.1, new=0.5)
    keep_line(options.log, {**vars(result), "settings": options.settings})
    keep_line(options.log, {**vars(result), "seed": 2, "settings": {**options.settings, "epochs": 3}})
    assert new_classes.read_log(options) == {(result.case, 1): result}
    keep_line(options.log, {"else": 1})
    with pytest.raises(InputError, match=r"--log: expected lines that bench new-classes wrote in .*, line 3"):
        new_classes.read_log(options)


def test_partitions(tmp_path: Path):
    finals = [{(1,): 80.0, (2,): 100.0, (3,): speed} for speed in (95.0, 95.0, 300.0)]
    found = partitions.Found(planned=(2,), equal=(1,), heats=finals, finals=finals)
    assert found.best == (2,)  # one lucky round does not choose
    outcome = check(partitions.make_outcome({"net": found}), tmp_path)
    assert outcome.ratios["planned / equal block counts, net"] == [1.25] * 3
    assert outcome.ratios["planned / best of all, net"] == [1.0] * 3


def test_partitions_in_the_finals_are_near_the_best_or_seeded():
    heats = [{(1,): 10.0, (2,): 91.0, (3,): 100.0, (4,): 80.0, (5,): 20.0}]
    assert partitions.finalists(heats, [(4,), (1,)]) == [(1,), (2,), (3,), (4,)]


def test_parcels(tmp_path: Path):
    paces = {"one a call": 100.0, "auto": 350.0}
    turns = {side: Turn(samples_per_s=pace, loop_s=1e-3) for side, pace in paces.items()}
    outcome = check(parcels.make_outcome({"net": [turns, turns]}), tmp_path)
    assert outcome.ratios["auto / one a call, net"] == [3.5, 3.5]
