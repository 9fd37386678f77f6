"""What a benchmark does once it has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distblock.bench.outcome import Finding, Outcome, Outputs, conclude, expectation, findings, read_options
from distblock.bench.pictures import Lines
from distblock.errors import InputError, RunFailedError


def outcome(**ratios: list[float]) -> Outcome:
    lines = {"ours": {1.0: 1.0, 2.0: 3.0}}
    return Outcome(figures=[1, 2], ratios=ratios, picture=Lines(title="t", across="x", upward="y", lines=lines))


def test_medians_are_held_against_bounds():
    expected = {"a": {"at_least": 2.0}, "b": {"at_most": 1.0}, "c": {"at_most": 1.0}}
    found = findings({"a": [1.0, 3.0, 2.0], "b": [1.5], "d": [9.0], "nan": [float("nan")]}, expected)
    assert [(each.name, each.value, each.verdict) for each in found if each.name != "nan"] == [
        ("a", 2.0, "pass"),
        ("b", 1.5, "fail"),
        ("d", 9.0, "no expectation"),
        ("c", None, "not measured"),
    ]
    [nan] = [each for each in findings({"a": [float("nan")]}, expected) if each.name == "a"]
    assert nan.verdict == "fail"
    assert isinstance(nan, Finding)


def test_a_ratio_that_falls_short_fails_the_benchmark():
    _, expected = expectation("hop")
    name, bounds = next((name, each) for name, each in expected.items() if "at_most" in each)
    with pytest.raises(RunFailedError, match="fall short"):
        conclude("hop", Outputs(check=True), outcome(**{name: [bounds["at_most"] * 1.01]}))
    conclude("hop", Outputs(check=True), outcome(**{name: [bounds["at_most"] * 0.99]}))
    conclude("hop", Outputs(), outcome(**{name: [bounds["at_most"] * 1.01]}))


def test_where_nothing_expected_was_measured_there_is_no_pass():
    with pytest.raises(RunFailedError, match="none of the expected"):
        conclude("hop", Outputs(check=True), outcome(other=[1.0]))


def test_figures_ratios_and_a_picture_are_written(tmp_path: Path):
    options = Outputs(output=str(tmp_path / "f.json"), picture=str(tmp_path / "f.svg"))
    conclude("hop", options, outcome(r=[1.0, 2.0, 6.0]))
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["ratios"]["r"]["median"] == 2.0
    assert content["figures"] == [1, 2]
    assert (tmp_path / "f.svg").read_text().lstrip().startswith("<?xml")


def test_where_nothing_could_be_written_nothing_is_measured(tmp_path: Path):
    with pytest.raises(InputError, match="--output: expected a file in a folder that is there"):
        read_options(Outputs, "hop", ["--output", str(tmp_path / "no" / "f.json")])
