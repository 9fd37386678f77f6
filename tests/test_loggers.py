"""A run's figures in TensorBoard's event files and on MLflow's own server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import answering

from distblock import BlockTrainer
from distblock.errors import InputError, StageError

QUICK: dict[str, Any] = {"executor": "local", "regime": {"epochs": 2}, "data": {"batch_size": 128, "fraction": 0.5}}


def fit(run_dir: Path, metrics: dict[str, Any], **settings: Any) -> dict[str, Any]:
    found = BlockTrainer({**QUICK, "run_dir": str(run_dir), "metrics": metrics, **settings}).fit().metrics
    assert found is not None
    return found


def test_tensorboard_reads_every_stages_figures(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = fit(tmp_path / "first", {"tensorboard": str(tmp_path / "board")})
    events = EventAccumulator(str(tmp_path / "board" / "first"))
    events.Reload()
    for index, stage in enumerate(summary["stages"]):
        told = events.Scalars(f"stages/{index}/validation_accuracy")
        assert [each.step for each in told] == [0, 1]
        assert told[-1].value == pytest.approx(stage["val_accuracy"])
        assert events.Scalars(f"stages/{index}/test_accuracy")[0].value == pytest.approx(stage["test_accuracy"])
    # Two epochs of 647 and of 144 samples, 16 x 8 x 8 values of 4 bytes each.
    assert events.Scalars("edges/0-to-1/payload_bytes")[-1].value == 2 * (647 + 144) * 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's tracking server on this machine."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_mlflows_server_has_every_figure(server: str, tmp_path: Path):
    from mlflow import MlflowClient

    summary = fit(tmp_path / "second", {"mlflow": server, "mlflow_experiment": "blocks"})
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("blocks")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("second", "FINISHED")
    assert run.data.params["data.batch_size"] == "128"
    assert run.data.metrics["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    for index, stage in enumerate(summary["stages"]):
        history = client.get_metric_history(run.info.run_id, f"stages/{index}/validation_accuracy")
        assert sorted(each.step for each in history) == [0, 1]
        assert run.data.metrics[f"stages/{index}/validation_accuracy"] == pytest.approx(stage["val_accuracy"])


def test_a_run_that_fails_is_marked_and_one_that_goes_on_is_the_same(server: str, tmp_path: Path):
    from mlflow import MlflowClient
    from test_resuming import cut_short

    client = MlflowClient(tracking_uri=server)
    metrics = {"mlflow": server, "mlflow_experiment": "failures"}
    with pytest.raises(StageError):
        fit(tmp_path / "fails", metrics, optimizer={"lr": 1e30})
    config = {**QUICK, "run_dir": str(tmp_path / "cut"), "metrics": metrics, "checkpoint": {"every_microbatches": 2}}
    cut_short(config, evaluations=2)
    experiment = client.get_experiment_by_name("failures")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.info.status) for run in runs} == {("fails", "FAILED"), ("cut", "FAILED")}
    BlockTrainer({**config, "resume": True}).fit()
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.info.status) for run in runs} == {("fails", "FAILED"), ("cut", "FINISHED")}


def test_a_server_that_is_not_there_is_named_before_anything_starts(tmp_path: Path):
    for port in ("9", "abc"):
        with pytest.raises(InputError, match=rf"metrics\.mlflow: expected a server at \S+:{port}, nobody answers"):
            fit(tmp_path / "run", {"mlflow": f"http://127.0.0.1:{port}", "tensorboard": str(tmp_path / "board")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [b"{}", b"<html>", None])
def test_a_server_that_is_not_mlflows_is_named(tmp_path: Path, answer: bytes | None):
    with answering(answer) as url, pytest.raises(InputError, match=r"metrics\.mlflow: expected MLflow's server at"):
        fit(tmp_path / "run", {"mlflow": url})
    assert not list(tmp_path.iterdir())
