"""What `distblock submit` refuses before it sends anything, and the command line that a job gets."""

from __future__ import annotations

import io
import signal
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from distblock import submission
from distblock.config import make_config
from distblock.errors import InputError
from distblock.flags import as_flags, parse_flags, read_settings
from distblock.runtime import jobs
from distblock.runtime.jobs import Job, Jobs
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
        {"channel": {"codec": "bf16", "edge_codecs": {1: "int8", 3: "fp32"}}},
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


@pytest.fixture
def another_service() -> Iterator[str]:
    """The address of a server that is no Ray dashboard: it answers everything with status 501."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_service_is_told_from_a_dashboard(another_service: str):
    with pytest.raises(InputError, match="got another service, which answers with status 501"):
        Jobs(another_service)


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError, match="got no answer in"):
        Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")


def job(state: str, exit_status: int | None = None) -> Job:
    return Job(name="a", state=state, started=None, ended=None, entrypoint="", exit_status=exit_status, message="")


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (job("SUCCEEDED", 0), 0),
        (job("FAILED", 2), 2),
        (job("FAILED"), 1),  # before its process began
        (job("FAILED", -9), 137),  # killed, as a shell has it
        (job("STOPPED"), 130),
    ],
)
def test_the_exit_status_is_that_of_the_job(ended: Job, status: int):
    assert submission._exit_status(ended) == status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cluster(Jobs):
    """One that knows a single job, and is reached without a network."""

    def __init__(self) -> None:
        self.address = "http://head:8265"
        self.stopped: list[str] = []

    def stop(self, name: str) -> Job:
        self.stopped.append(name)
        return job("STOPPED")


@pytest.mark.parametrize(
    ("answer", "stopped"),
    [(Terminal("y\n"), ["a"]), (Terminal("\n"), []), (Terminal(""), []), (io.StringIO("y\n"), [])],
    ids=["yes", "enter", "end", "no terminal"],
)
def test_ctrl_c_asks_whom_it_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: io.StringIO, stopped: list[str]
):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.stdin", answer)
    cluster = Cluster()
    try:
        assert submission._interrupted(cluster, "a") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert cluster.stopped == stopped
    said = capsys.readouterr().err.splitlines()[-1]
    how = "a goes on; stop it with distblock stop a --address http://head:8265"
    assert said.endswith("a: STOPPED" if stopped else how)
    assert ("[y/N]" in said) == answer.isatty()
