"""Runs that are told to end, or killed, as processes: what is left, and how they go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pyarrow.parquet as pq
import pytest
from further import further
from moto.server import ThreadedMotoServer

from distblock import BlockTrainer

SMALL = ["--data.batch-size", "96", "--checkpoint.every-microbatches", "20", "--resources.workers", "2"]
REGIMES = {
    "parallel": ["--regime.epochs", "25"],
    "wavefront": ["--regime.name", "wavefront", "--regime.laps", "3", "--regime.epochs", "5"],
}


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.communicate()


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "distblock", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if re.search(pattern, line):
            return read
    raise AssertionError(f"no line with {pattern}: {read}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def weights(summary: dict[str, Any]) -> list[str]:
    return [stage["weights_sha256"] for stage in summary["stages"]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same runs in the plain loop, one stage at a time."""
    runs: dict[str, dict[str, Any]] = {
        "parallel": {"epochs": 25},
        "wavefront": {"name": "multi-lap", "laps": 3, "epochs": 5},
    }
    folder = tmp_path_factory.mktemp("alone")
    results = {}
    for name, regime in runs.items():
        config = {
            "executor": "local",
            "data": {"batch_size": 96},
            "regime": regime,
            "checkpoint": {"every_s": None},
            "run_dir": str(folder / name),
        }
        results[name] = BlockTrainer(config).fit().metrics
    return results


def check(run: Path, expected: dict[str, Any]) -> None:
    found = summary(run)
    assert weights(found) == weights(expected)
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    samples = {row["num_samples"] for row in rows}
    assert len(samples) == 1, "each sample exactly once an epoch"


@pytest.mark.parametrize("regime", ["wavefront", further("parallel")])
def test_told_to_end_it_takes_one_more_checkpoint(tmp_path: Path, uninterrupted: dict[str, Any], regime: str):
    caches = ["--regime.cache-dir", str(tmp_path / "caches")] if regime == "wavefront" else []
    process = start(tmp_path, "train", "--run-dir", "run", *SMALL, *REGIMES[regime], *caches)
    read_until(process, r"epoch +4/")
    process.send_signal(signal.SIGTERM)
    status, errors = finish(process)
    assert status == 143, errors
    [line] = [line for line in errors.splitlines() if line.startswith("distblock:")]
    told = re.fullmatch(
        r"distblock: told to end; its last checkpoint is (\d+); go on with: distblock resume (.*)", line
    )
    assert told, line
    files = sorted(path for path in (tmp_path / "caches").glob("*/*.arrow")) if caches else []
    if files:
        # One of them is damaged: it is stored again; the others are read as they are.
        content = bytearray(files[0].read_bytes())
        content[len(content) // 2] ^= 1
        files[0].write_bytes(content)
    status, errors = finish(start(tmp_path, "resume", told[2]))
    assert status == 0, errors
    assert f"going on from checkpoint {told[1]}" in errors
    check(tmp_path / "run", uninterrupted[regime])
    assert summary(tmp_path / "run")["failures"][0]["kind"] == "interrupted"
    if caches:
        assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.parametrize("regime", ["parallel"])
def test_killed_it_leaves_no_process_and_goes_on(tmp_path: Path, uninterrupted: dict[str, Any], regime: str):
    process = start(tmp_path, "train", "--run-dir", "run", *SMALL, *REGIMES[regime])
    read_until(process, r"epoch +4/")
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    finish(process)
    # The same command again goes on, if it is asked to.
    status, errors = finish(start(tmp_path, "train", "--run-dir", "run", *SMALL, *REGIMES[regime], "--resume"))
    assert status == 0, errors
    assert "going on from checkpoint" in errors
    check(tmp_path / "run", uninterrupted[regime])
    if regime == "parallel":
        # Agents of an embedded Ray look for their parent once a minute.
        _, left = psutil.wait_procs(started, timeout=180)
        assert left == []


def test_two_processes_do_not_train_one_run(tmp_path: Path):
    process = start(tmp_path, "train", "--executor", "local", "--run-dir", "run", "--regime.epochs", "500")
    read_until(process, r"epoch +1/")
    status, errors = finish(start(tmp_path, "resume", "run"))
    process.terminate()
    finish(process)
    assert status == 2
    assert "is being trained by another process" in errors


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of a folder on an S3-compatible server; its keys are in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-theirs",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={quote(f'http://{host}:{port}', safe='')}&region=us-east-1&allow_bucket_creation=true"
    yield f"s3://bucket/runs/one?{options}"
    server.stop()


def test_on_an_s3_compatible_server(tmp_path: Path, bucket: str, uninterrupted: dict[str, Any]):
    from distblock.runs import RunDirectory

    process = start(tmp_path, "train", "--executor", "local", "--run-dir", bucket, *SMALL, *REGIMES["parallel"])
    read_until(process, r"epoch +4/")
    process.send_signal(signal.SIGTERM)
    status, errors = finish(process)
    assert status == 143, errors
    assert "a-secret-of-theirs" not in errors
    # Keys may stand in the URI, too; they stay out of what is written and told.
    with_keys = bucket.replace("s3://", "s3://somebody:a-secret-of-theirs@")
    status, errors = finish(start(tmp_path, "resume", with_keys, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""))
    assert status == 0, errors
    assert "a-secret-of-theirs" not in errors
    directory = RunDirectory.at(bucket)
    assert "a-secret-of-theirs" not in directory.read("config.yaml").decode()
    assert weights(directory.read_json("summary.json")) == weights(uninterrupted["parallel"])
    assert "final" in directory.folders("checkpoints")
    assert len(directory.folders("checkpoints")) == 3  # two are kept beside it
    assert list(tmp_path.iterdir()) == []


def test_a_word_to_a_run_in_another_thread_is_no_concern_of_ours(tmp_path: Path):
    """Signals reach the main thread alone; a trainer elsewhere must not try to catch them."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            config = {"executor": "local", "regime": {"epochs": 1}, "run_dir": str(tmp_path / "run")}
            BlockTrainer(config).fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert errors == []


def test_a_stopped_worker_is_named_while_it_stands_still(tmp_path: Path):
    """`distblock why` on a run under way, by its directory and by its exporter."""
    # One a call, so that it is one that it stands still at; how many else depends on how quick the machine is.
    one = ("--channel.microbatches-per-call", "1")
    process = start(tmp_path, "train", "--run-dir", "run", "--regime.epochs", "1000", "--metrics.port", "0", *one)
    told = read_until(process, r"metrics: http://")
    exporter = re.findall(r"(http://\S+)/metrics", told)[0]
    read_until(process, r"epoch +1/")
    children = psutil.Process(process.pid).children(recursive=True)
    found = next(child for child in children if "StageWorker" in " ".join(child.cmdline()))
    found.suspend()
    pattern = r"(worker \d) \(stages \d to \d\) has finished nothing for (\d+\.\d) s: at .* microbatch \d+ \("
    command = [sys.executable, "-m", "distblock", "why"]
    told = ""
    try:
        for turn in range(20):
            time.sleep(1)
            where = exporter if turn % 2 else "run"
            told = subprocess.run([*command, where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
            match = re.search(pattern, told)
            if match and float(match[2]) > 3 and where == exporter:
                break
        else:
            raise AssertionError(told)
        # Whoever has stood still for longest comes first.
        assert told.splitlines()[1].strip().startswith(match[1])
        # Whoever is behind it in the stream is given nothing: the edges are full.
        assert re.search(r"data worker 0 has been given nothing for \d+\.\d s: as much is in flight on edge", told)
    finally:
        found.resume()
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert not (tmp_path / "run" / "status.json").exists()
    assert not (tmp_path / "run" / "recent.parquet").exists()
