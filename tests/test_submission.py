"""What `distblock submit` refuses before it sends anything, and the command line that a job gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from distblock.config import make_config
from distblock.errors import InputError
from distblock.flags import as_flags, parse_flags, read_settings
from distblock.submission import submit

NOWHERE = ("--address", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"seed": 7, "precision": "bf16", "objective": {"tau": "inf", "varying": True}},
        {"data": {"name": "cifar10", "path": "/a b/c,d", "augment": ["crop", "flip"], "microbatch_size": None}},
        {"data": {"augment": []}, "model": {"cuts": [2, 5], "width": 8}, "optimizer": {"milestones": [0.1, 1 / 3]}},
        {"model": {"init_from": "--strange"}, "optimizer": {"lr": 1e-07}, "objective": {"varying": False}},
        {"metrics": {"port": 0}, "regime": {"name": "multi-lap", "laps": 3}, "run_dir": "s3://bucket/run"},
    ],
)
def test_flags_say_what_was_given(values: dict[str, object]):
    config = make_config(values)
    assert make_config(parse_flags(as_flags(config))) == config


def test_files_of_settings_are_read_here(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("regime: {epochs: 3, laps: 1}\nobjective: {tau: .inf}\n")
    config = make_config(read_settings(["--config", str(tmp_path / "run.yaml"), "--regime.epochs", "2"]))
    assert as_flags(config) == ["--objective.tau", "inf", "--regime.epochs", "2", "--regime.laps", "1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "../../x"], "--name: expected a name of up to"),
        (["--name", "/etc/x"], "--name: expected a name of up to"),
        (["--name", ".."], "--name: expected a name of up to"),
        (["--name", "a;reboot"], "--name: expected a name of up to"),
        (["--name", ""], "--name: expected a value, got none"),
        (["--regime.epochs", "1"], "come after --"),
        (["--", "--run-dir", "../x"], "run_dir: expected an absolute path on the cluster"),
        (["--", "--run-dir", "/runs/../../x"], "run_dir: expected an absolute path on the cluster"),
        (["--", "--run-dir", "s3://bucket/runs/../x"], "run_dir: expected an absolute path on the cluster"),
        (["--", "--run-dir", "runs/x"], "run_dir: expected an absolute path on the cluster"),
        (["--", "--regime.epoch", "1"], "did you mean --regime.epochs"),
        (["--", "--regime.epochs", "0"], "regime.epochs"),
        (["--", "--config", "missing.yaml"], "config file missing.yaml"),
        (["--", "--address", "head:6379"], "a job joins the cluster it runs on"),
    ],
)
def test_refused_before_anything_is_sent(arguments: list[str], said: str):
    # Nothing listens there: what is wrong with the rest is said first.
    with pytest.raises(InputError) as raised:
        submit([*NOWHERE, *arguments])
    assert said in str(raised.value)


def test_an_address_is_needed():
    with pytest.raises(InputError, match="--address: expected that of the cluster's dashboard"):
        submit(["--", "--regime.epochs", "1"])
