"""The command line as a user meets it: a process, its output, its exit status, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from further import further
from prometheus_client.parser import text_string_to_metric_families

from distblock.cli import main

NETS = """
import torch
from torch import nn

class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)

class Breaks(nn.Linear):
    calls = 0
    def forward(self, x):
        if self.training and len(x) == 64:
            Breaks.calls += 1
            if Breaks.calls == 4:
                raise RuntimeError("planted")
        return super().forward(x)

class NotFinite(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training and len(x) == 64 else 1)

class Dies(nn.Linear):
    def forward(self, x):
        if self.training and len(x) == 64:
            import os
            os._exit(7)
        return super().forward(x)

def good(in_channels, image_size, num_classes):
    return [Flatten(), nn.Linear(in_channels * image_size**2, 32), nn.ReLU()]

def breaks(in_channels, image_size, num_classes):
    return [Flatten(), Breaks(in_channels * image_size**2, 32)]

def not_finite(in_channels, image_size, num_classes):
    return [Flatten(), NotFinite(in_channels * image_size**2, 32)]

def dies(in_channels, image_size, num_classes):
    return [Flatten(), Dies(in_channels * image_size**2, 32)]

def wrong_shape(in_channels, image_size, num_classes):
    return [Flatten(), nn.Linear(in_channels * image_size**2, 32), nn.Linear(31, 8)]
"""


class Command:
    """`distblock` in a folder of its own; every process it starts carries a mark in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"DISTBLOCK_TEST_MARK={uuid.uuid4().hex}"
        (folder / "nets.py").write_text(NETS)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        name, _, value = self.mark.partition("=")
        return subprocess.Popen(
            [sys.executable, "-m", "distblock", *arguments],
            cwd=self.folder,
            env={**os.environ, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self) -> list[str]:
        """Command lines of living processes that carry the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def leaves_nothing(self) -> bool:
        """Whether all its processes end, given some seconds to do so."""
        deadline = time.monotonic() + 30
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.processes()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    assert command.leaves_nothing(), command.processes()


@pytest.fixture
def with_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for commands in this process, which must not start Ray."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delattr(ray, "init")
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, subprocess.CompletedProcess[str]]:
    """The main job, shortened, on an embedded Ray."""
    command = Command(tmp_path_factory.mktemp("trained"))
    done = command.run("train", "--regime.epochs", "4", "--run-dir", "run", "--channel.codec", "bf16")
    assert done.returncode == 0, done.stderr
    return command, done


def test_the_main_job_prints_accuracy_by_depth_and_communication(
    trained: tuple[Command, subprocess.CompletedProcess[str]],
):
    command, done = trained
    summary = json.loads((command.folder / "run" / "summary.json").read_text())
    for stage in summary["stages"]:
        assert f"{stage['test_accuracy']:.1%}".replace("%", " %") in done.stdout
    assert f"best stage on validation: {summary['best_stage']}" in done.stdout
    assert "0->1" in done.stdout
    assert "epoch 4/4  validation accuracy by stage" in done.stderr
    assert command.leaves_nothing()


def test_the_run_directory(trained: tuple[Command, subprocess.CompletedProcess[str]]):
    command, _ = trained
    run = command.folder / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["format_version"] == 1
    assert config["channel"]["codec"] == "bf16"
    summary = json.loads((run / "summary.json").read_text())
    metrics = pq.read_table(run / "metrics.parquet").to_pylist()
    assert [(row["epoch"], row["stage"]) for row in metrics] == [(e, s) for e in range(4) for s in range(3)]
    assert [row["test_accuracy"] for row in metrics[-3:]] == [stage["test_accuracy"] for stage in summary["stages"]]
    hops = pq.read_table(run / "hops.parquet").to_pylist()
    for edge in summary["edges"]:
        rows = [row for row in hops if row["edge"] == edge["name"]]
        assert sum(row["payload_bytes"] for row in rows) == edge["payload_bytes"]
        # Oracle: 4 epochs of 1,294 and 144 samples and 359 at the end, 16 x 8 x 8 and 32 x 4 x 4 values of 4 bytes;
        # on the wire 2 bytes a value and 8 a label.
        samples = 4 * (1294 + 144) + 359
        values = {"0->1": 16 * 8 * 8, "1->2": 32 * 4 * 4}[edge["name"]]
        assert edge["payload_bytes"] == samples * values * 4
        assert edge["wire_bytes"] == samples * (values * 2 + 8)
        # 1,294 samples are 20 batches of 64, the tail of 14 joined to the last; 144 are 3, and 359 are 6.
        assert edge["hops"] == 4 * (20 + 3) + 6
    assert sorted(path.name for path in (run / "checkpoints" / "final").iterdir()) == [
        "manifest.json",
        "stage-000.safetensors",
        "stage-001.safetensors",
        "stage-002.safetensors",
    ]


def test_a_run_imports_nothing_that_takes_seconds_and_is_not_needed(tmp_path: Path):
    train = ["train", "--executor", "local", "--regime.epochs", "1", "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-X", "importtime", "-m", "distblock", *train]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", run.stderr, re.MULTILINE))
    assert {"torch", "ray"} <= imported
    assert not {"torch._dynamo", "sklearn.datasets", "ray.train", "torchvision"} & imported


def test_evaluate_gives_the_same_accuracy(trained: tuple[Command, subprocess.CompletedProcess[str]]):
    command, _ = trained
    summary = json.loads((command.folder / "run" / "summary.json").read_text())
    best = summary["best_stage"]
    for part, key in (("test", "test_accuracy"), ("validation", "val_accuracy")):
        done = command.run("evaluate", "run", "--part", part)
        assert done.returncode == 0, done.stderr
        assert f"stage {best}, chosen on validation: {part} accuracy {summary['stages'][best][key]:.2%}" in done.stdout


def test_starting_from_a_run_and_exporting_it(trained: tuple[Command, subprocess.CompletedProcess[str]]):
    command, _ = trained
    done = command.run(
        *("train", "--executor", "local", "--model.init-from", "run", "--regime.epochs", "1", "--run-dir", "more"),
        *("--optimizer.lr", "1e-9", "--channel.codec", "bf16"),
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        json.loads((command.folder / name / "summary.json").read_text())["stages"][2] for name in ("run", "more")
    )
    # Nothing is learned at this rate: the first epoch's training loss is that of the weights it started from.
    assert after["train_loss"] == pytest.approx(before["train_loss"], abs=0.05)
    done = command.run("export", "run", "--to", "model.safetensors", "--stage", "1")
    assert done.returncode == 0, done.stderr
    from safetensors.numpy import load_file

    names = set(load_file(command.folder / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2"}


def test_existing_runs_are_not_overwritten(trained: tuple[Command, subprocess.CompletedProcess[str]]):
    command, _ = trained
    done = command.run("train", "--model.stages", "auto", "--run-dir", "run")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    # Nothing is planned before.
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--objective.tua 1", "--objective.tua: unknown flag; did you mean --objective.tau?"),
        ("--resources.gpus-per-worker 1", "the run needs 3 GPUs"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_starts_nothing(command: Command, arguments: str, message: str):
    process = command.start("train", *arguments.split())
    seen: set[str] = set()
    while process.poll() is None:
        seen |= set(command.processes())
        time.sleep(0.05)
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert message in err
    assert err.count("\n") == 1, err
    assert out == ""
    assert not [line for line in seen if "raylet" in line or "gcs_server" in line]
    assert not (command.folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--objective.tau 0", "objective.tau: should be greater than 0, got '0'"),
        ("--model.cuts 1 2 3", "model.cuts: expected numbers from 1 to 2, since the network has 3 blocks, got 3"),
        (
            "--model.stages 4",
            "model.stages: expected at most one stage a block, got 4 stages for a network of 3 blocks",
        ),
        ("--resources.workers 4", "resources.workers: expected at most one worker a stage, got 4 workers for 3 stages"),
        ("--data.name cifar10 --data.path nowhere", "expected the folder of cifar10, got nowhere: no such folder"),
        ("--data.name folder --data.path .", "expected a folder of images for each class"),
        ("--data.name imagenet --data.path .", "data.name: expected one of digits"),
        ("--model.name resnet9", "model.name: unknown network 'resnet9'; did you mean resnet8?"),
        ("--model.name nets:goood", "module nets has no function 'goood'; did you mean good?"),
        (
            "--model.name nets:wrong_shape --model.classifier linear",
            "stage 2, block 2 (blocks.2): expects a last dimension of 31 (Linear(",
        ),
        (
            "--model.name nets:good",
            "conv: expected maps (N, C, H, W), got features of shape (2, 64); choose --model.classifier linear",
        ),
        ("--model.init-from nowhere", "no final weights there"),
        ("--config nowhere.yaml", "config file nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: str, message: str, with_nets: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments.split()])
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert out == ""
    assert not (with_nets / "runs").exists()


def test_a_bug_in_a_stage_ends_the_run_with_stage_microbatch_and_cause(command: Command):
    done = command.run("train", "--model.name", "nets:breaks", "--model.classifier", "linear", "--run-dir", "run")
    assert done.returncode == 1
    assert "stage 1, epoch 1, training microbatch 3: RuntimeError: planted (nets.py:15 in forward)" in done.stderr
    assert (command.folder / "run" / "metrics.parquet").exists()


def test_a_loss_that_is_not_finite_is_named(command: Command):
    done = command.run(
        "train", "--model.name", "nets:not_finite", "--model.classifier", "linear", "--executor", "local"
    )
    assert done.returncode == 1
    assert "stage 1, epoch 1, training microbatch 0: FloatingPointError: the loss is not finite" in done.stderr


def test_a_worker_that_dies_is_named(command: Command):
    done = command.run("train", "--model.name", "nets:dies", "--model.classifier", "linear")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "distblock: worker 1 (stages 1 to 1), epoch 1, training microbatch 0: its process ended" in last
    assert "for the 3rd time at the same place" in last


@pytest.mark.parametrize("times", [2, further(1)])
def test_ctrl_c_ends_the_run_and_leaves_no_process(command: Command, times: int):
    process = command.start("train", "--regime.epochs", "2000")
    assert process.stderr is not None
    for line in process.stderr:
        if re.match(r"epoch +1/", line):
            break
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.stderr.read()
    assert process.wait(timeout=60) == 130


def test_told_to_end_while_it_plans(command: Command):
    process = command.start("train", "--model.stages", "auto", "--run-dir", "run")
    while sum("spawn_main" in line for line in command.processes()) < 2 and process.poll() is None:
        time.sleep(0.05)
    # A process that is told nothing any more as it starts would say so, perhaps after the command's own last word.
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "distblock: told to end"
    assert not (command.folder / "run").exists()


def test_told_to_end_while_it_tunes(command: Command):
    """In the middle of Ray Tune, whose waiting makes another exception of ours."""
    search = ["--search", "objective.tau=log:0.3:30", "--trials", "1", "--folder", "tune"]
    process = command.start("tune", *search, "--regime.epochs", "300")
    while not list((command.folder / "tune").glob("*.log")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "distblock: told to end"


def test_a_second_signal_of_another_kind_ends_it_at_once(command: Command):
    process = command.start("plan", "--model.name", "resnet8")
    while len(command.processes()) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    # The first may have been enough.
    assert process.returncode in (130, 143)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["train --help", "evaluate --help", "--version"])
def test_nobody_reads_what_is_printed(command: Command, words: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = command.start(*words.split())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_a_run_whose_progress_nobody_reads_goes_on(command: Command):
    process = command.start("train", "--executor", "local", "--regime.epochs", "2", "--run-dir", "run")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert (command.folder / "run" / "summary.json").exists()


def test_without_stdout(command: Command):
    line = f"{sys.executable} -m distblock --version >&-"
    done = subprocess.run(["bash", "-c", line], cwd=command.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


ONE_BY_ONE = ["--regime.laps", "2", "--regime.cache-dir", "caches"]
REGIMES = {
    "sequential": ["--regime.cache-dir", "caches"],
    "multi-lap": ONE_BY_ONE,
    "wavefront": ONE_BY_ONE,
    "asynchronous": [],
    "end-to-end": [],
}


SOME = [name if name == "sequential" else further(name) for name in REGIMES]


def left_in_caches(command: Command) -> list[Path]:
    folder = command.folder / "caches"
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("regime", SOME)
def test_ctrl_c_in_every_regime_leaves_no_process_and_no_cache(command: Command, regime: str):
    process = command.start("train", "--regime.name", regime, "--regime.epochs", "200", *REGIMES[regime])
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(r"epoch +2/", line):
            break
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert left_in_caches(command) == []


@pytest.mark.parametrize("regime", SOME)
def test_a_stage_that_fails_in_any_regime_is_named(command: Command, regime: str):
    done = command.run(
        "train",
        "--model.name",
        "nets:breaks",
        "--model.classifier",
        "linear",
        "--regime.name",
        regime,
        *REGIMES[regime],
    )
    assert done.returncode == 1
    stage = 0 if regime == "end-to-end" else 1
    assert f"distblock: stage {stage}, " in done.stderr
    assert "RuntimeError: planted" in done.stderr
    assert left_in_caches(command) == []


def test_the_exporter_is_live_during_the_run(command: Command):
    process = command.start("train", "--regime.epochs", "2000", "--metrics.port", "0", "--run-dir", "run")
    assert process.stderr is not None
    address = ""
    for line in process.stderr:
        if "metrics: http" in line:
            address = line.split()[-1]
        if re.match(r"epoch +2/", line):
            break
    with urllib.request.urlopen(address) as response:
        samples = {
            (sample.name, sample.labels.get("stage") or sample.labels.get("edge")): sample
            for family in text_string_to_metric_families(response.read().decode())
            for sample in family.samples
        }
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    process.wait(timeout=60)
    assert samples["distblock_accuracy_ratio", "2"].value > 0.5
    assert samples["distblock_wire_bytes_total", "0->1"].value > 0
    assert {sample.labels["run"] for sample in samples.values()} == {"run"}


def test_a_time_limit_ends_the_run_in_order(command: Command):
    done = command.run(
        "train", "--regime.epochs", "2000", "--regime.max-time-s", "3", "--executor", "local", "--run-dir", "run"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((command.folder / "run" / "summary.json").read_text())
    assert 1 <= summary["epochs"] < 2000
    assert all(stage["test_accuracy"] is not None for stage in summary["stages"])


def test_end_to_end_is_one_stage_without_transport_cost(command: Command):
    done = command.run(
        "train", "--regime.name", "end-to-end", "--regime.epochs", "4", "--executor", "local", "--run-dir", "run"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((command.folder / "run" / "summary.json").read_text())
    assert summary["num_stages"] == 1
    assert summary["stages"][0]["blocks"] == ["layer1.0", "layer2.0", "layer3.0"]
    assert yaml.safe_load((command.folder / "run" / "config.yaml").read_text())["objective"]["tau"] == "inf"
    assert summary["test_accuracy"] > 0.9


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["bench", "--help"], []])
def test_help_says_what_there_is(command: Command, words: list[str]):
    done = command.run(*words)
    assert done.returncode == 0
    assert "usage" in done.stdout
