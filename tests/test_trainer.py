"""`BlockTrainer` as whoever knows Ray Train uses it: RunConfig in, Result out, on clusters of several kinds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pyarrow.fs
import pytest
import torch
from clusters import TOKEN, Cluster, started_cluster
from further import further
from ray.train import CheckpointConfig, FailureConfig, RunConfig, UserCallback
from ray.train.v2.api.callback import RayTrainCallback
from safetensors.torch import load_file

from distblock import BlockTrainer, InputError
from distblock.attempts import Attempts
from distblock.errors import PreemptedError, StageError
from distblock.evaluation import evaluate_run, export_run
from distblock.runs import RunDirectory

QUICK: dict[str, Any] = {"executor": "local", "regime": {"epochs": 1}, "data": {"batch_size": 128}}


def test_a_run_config_names_the_directory_and_the_result_tells_of_it(tmp_path: Path):
    trainer = BlockTrainer(QUICK, run_config=RunConfig(storage_path=str(tmp_path), name="one"))
    result = trainer.fit()
    assert result.path == str(tmp_path / "one")
    assert result.error is None
    assert result.metrics is not None
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert result.metrics["test_accuracy"] == summary["test_accuracy"]
    assert result.metrics_dataframe is not None
    assert list(result.metrics_dataframe["stage"]) == [0, 1, 2]
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        assert (Path(folder) / "manifest.json").exists()
    assert result.get_best_checkpoint("test_accuracy", "max") == result.checkpoint


def test_a_storage_filesystem_is_used(tmp_path: Path):
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    result = BlockTrainer(
        QUICK, run_config=RunConfig(storage_path="bucket", storage_filesystem=filesystem, name="run")
    ).fit()
    assert result.filesystem is filesystem
    assert (tmp_path / "bucket" / "run" / "summary.json").exists()
    assert result.checkpoint is not None
    assert filesystem.get_file_info(f"{result.checkpoint.path}/manifest.json").is_file


def test_a_run_directory_by_uri(tmp_path: Path):
    BlockTrainer({**QUICK, "run_dir": (tmp_path / "run").as_uri()}).fit()
    assert (tmp_path / "run" / "metrics.parquet").exists()
    passes, best = evaluate_run(RunDirectory.at((tmp_path / "run").as_uri()))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert passes[best].accuracy == summary["test_accuracy"]


@pytest.mark.parametrize("ends", [PreemptedError("told to end"), KeyboardInterrupt(), InputError("too small")])
def test_a_run_that_never_began_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException
):
    def end(_attempts: Attempts) -> None:
        raise ends

    monkeypatch.setattr(Attempts, "run", end)
    with pytest.raises(type(ends)):
        BlockTrainer({"executor": "local", "run_dir": str(tmp_path / "run")}).fit()
    assert not (tmp_path / "run").exists()


def test_the_directory_is_named_once(tmp_path: Path):
    with pytest.raises(InputError, match=r"run_dir: expected it once, got run_dir=here and RunConfig\(storage_path="):
        BlockTrainer({"run_dir": "here"}, run_config=RunConfig(storage_path=str(tmp_path)))


def test_a_run_cannot_leave_the_folder_of_runs(tmp_path: Path):
    for name in ("../outside", "/outside", "..", "in/side"):
        with pytest.raises(InputError, match=r"RunConfig\.name: expected a name of up to"):
            BlockTrainer(QUICK, run_config=RunConfig(storage_path=str(tmp_path / "runs"), name=name))
    assert not list(tmp_path.iterdir())


def test_the_users_network_and_data_can_be_given_in_python(tmp_path: Path):
    def build(in_channels: int, image_size: int, num_classes: int) -> list[torch.nn.Module]:
        assert (in_channels, image_size, num_classes) == (3, 4, 2)
        return [torch.nn.Flatten(), torch.nn.Linear(48, 8)]

    def dataset() -> list[tuple[torch.Tensor, int]]:
        generator = torch.Generator().manual_seed(0)
        return [(torch.rand(3, 4, 4, generator=generator) / 2 + index % 2 / 2, index % 2) for index in range(80)]

    config = {**QUICK, "data": {"batch_size": 16}, "model": {"classifier": "linear"}, "run_dir": str(tmp_path / "run")}
    config["regime"] = {"epochs": 10}
    result = BlockTrainer(config, model=build, dataset=dataset).fit()
    assert result.metrics is not None
    assert result.metrics["test_accuracy"] == 1.0
    passes, best = evaluate_run(RunDirectory.at(tmp_path / "run"), model=build, dataset=dataset)
    assert passes[best].accuracy == 1.0


@pytest.mark.parametrize("name", ["resnet18", further("resnet50")])
def test_torchvision_loads_what_is_exported(tmp_path: Path, name: str):
    from distblock.vision import models

    config = {
        **QUICK,
        "data": {"batch_size": 128, "fraction": 0.1},
        "model": {"name": f"torchvision/{name}", "stages": 4},
        "run_dir": str(tmp_path / "run"),
    }
    BlockTrainer(config).fit()
    network = models.get_model(name, num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    for stage, missing in ((3, {"fc"}), (1, {"fc", "layer3", "layer4"})):
        export_run(RunDirectory.at(tmp_path / "run"), to=tmp_path / "model.safetensors", stage=stage)
        loaded = load_file(tmp_path / "model.safetensors")
        outcome = network.load_state_dict(loaded, strict=False)
        assert outcome.unexpected_keys == []
        left_out = {key for key in outcome.missing_keys if key.split(".")[0] not in missing}
        # Cuts are balanced by cost and fall inside a layer: of each layer, blocks may be missing from the end.
        assert all(key.split(".")[0] in ("layer2", "layer3", "layer4") for key in left_out)
        assert stage != 3 or not left_out
        state = network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in loaded.items())


def test_several_runs_at_once_on_one_cluster_do_not_disturb_each_other(shared_ray: None, tmp_path: Path):
    def weights(seed: int, folder: str, executor: str) -> list[str]:
        config = {**QUICK, "executor": executor, "seed": seed, "run_dir": str(tmp_path / folder)}
        metrics = BlockTrainer(config).fit().metrics
        assert metrics is not None
        return [stage["weights_sha256"] for stage in metrics["stages"]]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: weights(seed, f"together-{seed}", "ray"), range(3)))
    # Oracle: each seed alone, in the plain loop.
    assert together == [weights(seed, f"alone-{seed}", "local") for seed in range(3)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head node of 4 CPUs on this machine."""
    with started_cluster(tmp_path_factory.mktemp("cluster"), [4]) as cluster:
        yield cluster


def train_on(
    cluster: Cluster, folder: Path, extra: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    arguments = ["--address", cluster.address, "--regime.epochs", "1", "--run-dir", "run", *extra]
    return subprocess.run(
        [sys.executable, "-m", "distblock", "train", *arguments],
        cwd=folder,
        env={**cluster.environment, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_cluster_is_joined_by_its_address(cluster: Cluster, tmp_path: Path):
    done = train_on(cluster, tmp_path)
    assert done.returncode == 0, done.stderr
    on_cluster = json.loads((tmp_path / "run" / "summary.json").read_text())
    alone = BlockTrainer({"executor": "local", "regime": {"epochs": 1}, "run_dir": str(tmp_path / "alone")}).fit()
    assert alone.metrics is not None
    assert [stage["weights_sha256"] for stage in on_cluster["stages"]] == [
        stage["weights_sha256"] for stage in alone.metrics["stages"]
    ]


def test_a_cluster_that_is_too_small_is_named(cluster: Cluster, tmp_path: Path):
    environment = {**cluster.environment, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*(sys.executable, "-m", "distblock", "train", "--address", cluster.address), "--model.name", "resnet56"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "CPU" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("mode", "token", "said"),
    [
        ("token", "f" * 32, "got another one; give the cluster's in RAY_AUTH_TOKEN"),
        ("token", None, "got none; give it in RAY_AUTH_TOKEN"),
        ("token", "", "RAY_AUTH_TOKEN_PATH: expected a file with a token, got"),
        ("disabled", TOKEN, "RAY_AUTH_MODE is not token; set it"),
    ],
)
def test_a_wrong_or_missing_token_is_named(cluster: Cluster, tmp_path: Path, mode: str, token: str | None, said: str):
    environment = {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": ""}
    if token is not None:
        (tmp_path / "token").write_text(token)
        environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    done = train_on(cluster, tmp_path, **environment)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_the_token_alone_lets_in(cluster: Cluster, tmp_path: Path):
    # Ray would show it only where RAY_AUTH_MODE says so; a network that there is not ends the run before it trains.
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_MODE"}
    done = train_on(Cluster(cluster.address, environment), tmp_path, extra=["--resources.cpus-per-worker", "99"])
    assert done.returncode == 2, done.stderr
    assert "CPU" in done.stderr
    assert "token" not in done.stderr
    # What was refused has left nothing.
    assert not (tmp_path / "run").exists()


def test_an_address_where_nothing_listens(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = train_on(Cluster(address, dict(os.environ)), tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"address: expected a running Ray cluster at {address}" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


class Heard(UserCallback):
    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []
        self.errors: list[dict[int, Exception]] = []
        self.names: set[str | None] = set()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.figures += metrics
        self.names.add(run_context.get_run_config().name)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.errors.append(worker_exceptions)


def test_ray_trains_callbacks_hear_every_evaluation_of_every_stage(tmp_path: Path):
    heard = Heard()
    run_config = RunConfig(storage_path=str(tmp_path), name="heard", callbacks=[heard])
    result = BlockTrainer({**QUICK, "executor": "local", "regime": {"epochs": 2}}, run_config=run_config).fit()
    assert result.metrics is not None
    assert heard.names == {"heard"}
    stages = result.metrics["stages"]
    assert len(heard.figures) == 2 * len(stages)
    for index, stage in enumerate(stages):
        last = [each for each in heard.figures if f"stages/{index}/validation_accuracy" in each][-1]
        assert last[f"stages/{index}/validation_accuracy"] == pytest.approx(stage["val_accuracy"])
        assert last["epoch"] == 1
        name = "data-to-0" if index == 0 else f"{index - 1}-to-{index}"
        assert last[f"edges/{name}/payload_bytes"] > 0


def test_ray_trains_callbacks_hear_why_a_run_ends(tmp_path: Path):
    heard = Heard()
    run_config = RunConfig(storage_path=str(tmp_path), callbacks=[heard])
    config = {**QUICK, "executor": "local", "optimizer": {"lr": 1e30}}
    with pytest.raises(StageError):
        BlockTrainer(config, run_config=run_config).fit()
    [told] = heard.errors
    assert isinstance(told[0], StageError)


def test_a_callback_of_ray_trains_own_insides_is_named(tmp_path: Path):
    """Ray refuses what is no callback at all; those of its controller and its workers would hear nothing here."""
    with pytest.raises(InputError, match=r"RunConfig\.callbacks: expected objects of ray\.train\.UserCallback"):
        BlockTrainer(
            QUICK, run_config=RunConfig(storage_path=str(tmp_path), callbacks=[cast(UserCallback, RayTrainCallback())])
        )


def test_ray_trains_failure_config_goes_over_ours_unless_it_is_the_default():
    given = {**QUICK, "recovery": {"max_failures": 7}}
    configs = [RunConfig(failure_config=FailureConfig(max_failures=most)) for most in (3, -1)] + [RunConfig(), None]
    found = [BlockTrainer(given, run_config=config).config.recovery.max_failures for config in configs]
    assert found == [3, -1, 7, 7]


def test_ray_trains_checkpoint_config_changes_only_what_it_sets():
    given = {**QUICK, "checkpoint": {"score": "val_loss", "score_order": "min", "num_to_keep": 4}}
    trainer = BlockTrainer(given, run_config=RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=3)))
    checkpoint = trainer.config.checkpoint
    assert (checkpoint.num_to_keep, checkpoint.score, checkpoint.score_order) == (3, "val_loss", "min")
