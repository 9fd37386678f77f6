"""Jobs as a platform engineer sends them: a head node with dashboard and token, and commands from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from clusters import TOKEN, Cluster, started_cluster

from distblock import BlockTrainer
from distblock.runtime import jobs
from distblock.runtime.jobs import Job, Jobs

DECOY = "raise ImportError('the cluster has a distblock of its own, but the job brings one')"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of 4 CPUs whose own distblock cannot be imported."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "decoy" / "distblock").mkdir(parents=True)
    (folder / "decoy" / "distblock" / "__init__.py").write_text(DECOY)
    environment = {"HOME": str(folder), "PYTHONPATH": str(folder / "decoy")}
    with started_cluster(folder, [4], dashboard=True, environment=environment) as cluster:
        yield cluster


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of settings and code, apart from where runs go."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "run.yaml").write_text("regime:\n  epochs: 1\n")
    return folder


def outside(cluster: Cluster, **changes: str) -> dict[str, str]:
    """The environment of a machine that has the token, and has set nothing else of Ray's."""
    return {**os.environ, "RAY_AUTH_TOKEN_PATH": cluster.environment["RAY_AUTH_TOKEN_PATH"], **changes}


def distblock(
    cluster: Cluster, folder: Path, *arguments: str, address: str | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    verb, *rest = arguments
    return subprocess.run(
        [*(sys.executable, "-m", "distblock", verb, "--address", address or cluster.dashboard), *rest],
        cwd=folder,
        env=outside(cluster, **changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_followed_job_trains_what_the_plain_loop_trains(cluster: Cluster, project: Path, tmp_path: Path):
    (project / "large.bin").write_bytes(bytes(11 * 1024**2))
    run = tmp_path / "run"
    done = distblock(
        *(cluster, project, "submit", "--follow", "--name", "demo", "--python", sys.executable),
        *("--", "--config", "run.yaml", "--run-dir", str(run)),
        RAY_ADDRESS="127.0.0.1:1",  # which Ray would take over the address that is given
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/1" in done.stdout
    assert "best stage on validation" in done.stdout
    said = done.stderr.splitlines()
    assert said[0] == "distblock: left out for its size: large.bin"
    assert said[1].startswith("distblock: submitted demo with 1 files of ")
    assert len(said) == 2
    # Oracle: the plain loop in this process.
    alone = BlockTrainer({"executor": "local", "regime": {"epochs": 1}, "run_dir": str(tmp_path / "alone")}).fit()
    assert alone.metrics is not None
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["weights_sha256"] for stage in summary["stages"]] == [
        stage["weights_sha256"] for stage in alone.metrics["stages"]
    ]
    session = requests.get(
        f"{cluster.dashboard}/api/version", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
    ).json()["session_name"]
    files = [path for place in (run, Path("/tmp/ray") / session) for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "job-driver-demo.log" for path in files)
    assert any(path.name == "config.yaml" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in done.stdout + done.stderr


def test_a_job_that_fails_hands_on_its_exit_status(cluster: Cluster, project: Path):
    done = distblock(
        *(cluster, project, "submit", "--follow", "--name", "fails", "--python", sys.executable),
        *("--", "--model.name", "missing:build"),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "missing" in done.stdout.splitlines()[-1]
    assert done.stderr.splitlines()[-1] == "distblock: fails: FAILED, exit status 2"
    again = distblock(cluster, project, "submit", "--name", "fails")
    assert again.returncode == 2
    assert "Job with submission_id fails already exists" in again.stderr
    assert again.stderr.count("\n") == 1, again.stderr


def test_a_long_job_survives_ctrl_c_and_is_stopped_in_order(cluster: Cluster, project: Path):
    command = [sys.executable, "-m", "distblock", "submit", "--address", cluster.dashboard, "--follow"]
    with subprocess.Popen(
        [*command, "--name", "long", "--python", sys.executable, "--", "--regime.epochs", "100000"],
        cwd=project,
        env=outside(cluster),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = next((line for line in process.stdout if "validation accuracy" in line), None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert seen is not None, said
    assert process.returncode == 130
    how = f"distblock stop long --address {cluster.dashboard}"
    assert said.splitlines()[-1] == f"distblock: long goes on; stop it with {how}"
    listed = distblock(cluster, project, "jobs")
    assert [line.split()[3] for line in listed.stdout.splitlines() if " long " in line] == ["RUNNING"]
    stopped = distblock(cluster, project, "stop", "long")
    assert (stopped.returncode, stopped.stdout) == (0, "long: STOPPED\n"), stopped.stderr
    # It ended as by Ctrl-C, with its logs written, in the place that a run has where none was given.
    run = Path(cluster.environment["HOME"]) / "distblock-runs" / "long"
    assert {"config.yaml", "metrics.parquet"} <= {path.name for path in run.iterdir()}
    listed = distblock(cluster, project, "jobs")
    assert listed.returncode == 0
    assert [line.split()[3] for line in listed.stdout.splitlines() if " long " in line] == ["STOPPED"]
    assert "-m distblock train" in listed.stdout
    assert distblock(cluster, project, "stop", "long").stdout == "long: STOPPED\n"


@pytest.mark.parametrize("verb", [["submit"], ["jobs"], ["stop", "some"]])
@pytest.mark.parametrize(
    ("token", "said"),
    [("f" * 32, "got another one; give the cluster's in RAY_AUTH_TOKEN"), ("", "got none; give it in RAY_AUTH_TOKEN")],
)
def test_a_wrong_or_missing_token(cluster: Cluster, project: Path, verb: list[str], token: str, said: str):
    changes = {"HOME": str(project), "RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": ""}
    done = distblock(cluster, project, *verb, **changes)
    assert done.returncode == 2
    assert f"--address: expected {'the' if token else 'a'} token" in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not token or token not in done.stderr


def test_addresses_that_lead_to_no_dashboard(cluster: Cluster, project: Path):
    cases = {
        "http://127.0.0.1:1": "got: connection refused; start it with ray start --head --include-dashboard=true",
        f"http://{cluster.address}": "got something that does not speak HTTP; the dashboard's port is 8265",
        "ray://127.0.0.1:10001": "got ray://127.0.0.1:10001; Ray Client is not for jobs",
        cluster.dashboard.removeprefix("http://"): "put http:// before host and port",
        "http://user:secret@127.0.0.1:1": "the token alone lets in",
    }
    for address, said in cases.items():
        done = distblock(cluster, project, "jobs", address=address)
        assert done.returncode == 2, address
        assert said in done.stderr, address
        assert done.stderr.count("\n") == 1, done.stderr
        assert "secret" not in done.stderr


def test_a_job_that_there_is_not(cluster: Cluster, project: Path):
    done = distblock(cluster, project, "stop", "never-sent")
    assert done.returncode == 2
    expected = f"distblock: Job never-sent does not exist; see distblock jobs --address {cluster.dashboard}\n"
    assert done.stderr == expected


class Breaking:
    """Ray's client, whose connection breaks twice; every new one brings the log from its beginning."""

    def __init__(self) -> None:
        self.logs: list[list[Any]] = [["one\n", "tw", OSError("broke")], ["one\ntwo\nth", RuntimeError("broke")]]

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0) if self.logs else ["one\ntwo\nthree\n"]:
            if isinstance(text, Exception):
                raise text
            yield text


def test_a_broken_connection_loses_and_doubles_no_line(monkeypatch: pytest.MonkeyPatch):
    cluster = Jobs.__new__(Jobs)
    cluster.address = "http://head:8265"
    monkeypatch.setattr(cluster, "_client", Breaking(), raising=False)
    ended = Job(name="a", state="SUCCEEDED", started=None, ended=None, entrypoint="", exit_status=0, message="")
    monkeypatch.setattr(cluster, "_find", lambda name: ended)
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    written: list[str] = []
    assert cluster.follow("a", written.append) is ended
    assert "".join(written) == "one\ntwo\nthree\n"
