"""Checkpoints that are damaged, storages that fail, runs that are told to end: nothing is lost, or one line says what.

Runs are cut short in the plain loop; the oracle is one that was not.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from ray.train import CheckpointConfig, RunConfig
from rich.console import Console

from distblock import BlockTrainer, InputError
from distblock.errors import StorageError
from distblock.runs import RunDirectory
from distblock.runs.checkpoints import Checkpoint, folder_of, list_checkpoints, numbers, to_remove

CONFIG: dict[str, Any] = {
    "executor": "local",
    "data": {"batch_size": 96, "fraction": 0.5},
    "regime": {"epochs": 4},
    "checkpoint": {"every_microbatches": 3, "num_to_keep": None},
}


class CutShortError(Exception):
    """Stands for whatever ends a run in the middle."""


def end_after(evaluations: int) -> Callable[[int, float], None]:
    left = iter(range(evaluations - 1, -1, -1))

    def tell(stage: int, accuracy: float) -> None:
        if next(left) == 0:
            raise CutShortError

    return tell


def hashes(summary: dict[str, Any] | None) -> list[str]:
    assert summary is not None
    return [stage["weights_sha256"] for stage in summary["stages"]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of a run that was not cut short."""
    return hashes(BlockTrainer({**CONFIG, "run_dir": str(tmp_path_factory.mktemp("alone") / "run")}).fit().metrics)


@pytest.fixture(scope="module")
def cut_short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many checkpoints that was cut short; not to be written to."""
    folder = tmp_path_factory.mktemp("cut-short") / "run"
    with pytest.raises(CutShortError):
        BlockTrainer({**CONFIG, "run_dir": str(folder)}, on_evaluation=end_after(7)).fit()
    return folder


@pytest.fixture
def run(cut_short_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(cut_short_run, tmp_path / "run")
    return tmp_path / "run"


def resume(run: Path, /, **changes: Any) -> tuple[list[str], str]:
    with (run.parent / "log").open("w") as file:
        config = {**CONFIG, "run_dir": str(run), "resume": True, **changes}
        metrics = BlockTrainer(config, console=Console(file=file, width=300)).fit().metrics
    return hashes(metrics), (run.parent / "log").read_text()


def newest(run: Path) -> tuple[Path, int]:
    number = numbers(RunDirectory.at(run))[-1]
    return run / folder_of(number), number


def truncate(folder: Path) -> None:
    path = folder / "stage-001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / "stage-002.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "stage-000.safetensors").unlink()


def flip_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"elapsed_s": ', '"elapsed_s": 1'))


def cut_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])


def leave_half(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "account.json").unlink()


DAMAGES: dict[Callable[..., None], str] = {
    truncate: "it is cut short",
    flip: "it has been damaged",
    lose_a_file: "no such file",
    flip_the_manifest: "its checksum does not fit",
    cut_the_manifest: "expected a whole JSON file",
    leave_half: "",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_newest_whole_one_is_used(run: Path, uninterrupted: list[str], damage: Callable[..., None]):
    folder, number = newest(run)
    damage(folder)
    weights, log = resume(run)
    assert weights == uninterrupted
    assert f"going on from checkpoint {number - 1}" in log
    assert DAMAGES[damage] in log
    assert (f"checkpoint {number} cannot be used" in log) == (damage is not leave_half)


def test_where_none_is_whole_one_line_says_so(run: Path):
    for number in numbers(RunDirectory.at(run)):
        truncate(run / folder_of(number))
    with pytest.raises(InputError, match=r"expected a whole checkpoint, got \d+ damaged: .*it is cut short"):
        resume(run)


def test_checkpoints_of_another_network_are_refused(run: Path, tmp_path: Path):
    wide = {**CONFIG, "model": {"width": 8}, "run_dir": str(tmp_path / "other")}
    with pytest.raises(CutShortError):
        BlockTrainer(wide, on_evaluation=end_after(4)).fit()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", run / "checkpoints")
    with pytest.raises(InputError, match=r"expected shape \(.*\), got \(.*it is of another network; check model.name"):
        resume(run)


def test_a_setting_that_says_what_is_trained_cannot_change(run: Path):
    with pytest.raises(InputError, match=r"resume: optimizer.lr: expected 0.02, as the run began, got 0.5"):
        resume(run, optimizer={"lr": 0.5})


def test_nothing_is_read_by_pickle(run: Path, uninterrupted: list[str], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert resume(run)[0] == uninterrupted


DIES_WHILE_WRITING = """
import os, signal, sys
from distblock import BlockTrainer
from distblock.runs.directory import RunDirectory
write = RunDirectory.write
def dying(self, name, content):
    if name == "checkpoints/000004/stage-001.safetensors":
        write(self, name, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, content)
RunDirectory.write = dying
BlockTrainer(eval(sys.argv[1])).fit()
"""


def test_killed_in_the_middle_of_writing(tmp_path: Path, uninterrupted: list[str]):
    config = {**CONFIG, "run_dir": str(tmp_path / "run")}
    done = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING, repr(config)], capture_output=True, check=False)
    assert done.returncode == -9
    assert (tmp_path / "run" / "checkpoints" / "000004").exists()
    weights, log = resume(tmp_path / "run")
    assert weights == uninterrupted
    assert "going on from checkpoint 3" in log


class Flaky(fs.FileSystemHandler):
    """A local file system whose storage refuses some writes."""

    def __init__(self, refuses: Callable[[str], bool]) -> None:
        self._inner = fs.LocalFileSystem()
        self._refuses = refuses

    def __eq__(self, other: object) -> bool:
        return self is other

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._inner.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._inner.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._inner.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._inner.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self._inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self._inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self._refuses(path):
            raise OSError(28, "No space left on device", path)
        return self._inner.open_output_stream(path)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError


def fit_on(refuses: Callable[[str], bool], folder: Path) -> tuple[Any, str]:
    run_config = RunConfig(storage_path=str(folder), storage_filesystem=fs.PyFileSystem(Flaky(refuses)), name="run")
    log = folder / "log"
    with log.open("w") as file:
        try:
            outcome = BlockTrainer(CONFIG, run_config=run_config, console=Console(file=file, width=300)).fit()
        except StorageError as error:
            outcome = error
    return outcome, log.read_text()


def test_a_storage_that_fails_for_a_while(tmp_path: Path, uninterrupted: list[str]):
    result, log = fit_on(lambda path: "/000002/" in path or "/000003/" in path, tmp_path)
    assert hashes(result.metrics) == uninterrupted
    assert [failure["kind"] for failure in result.metrics["failures"]] == ["checkpoint_failed"] * 2
    assert "checkpoint 2: [Errno 28] No space left on device" in log
    assert "training goes on" in log
    there = [checkpoint.number for checkpoint in list_checkpoints(RunDirectory.at(tmp_path / "run"))]
    assert there[:2] == [1, 4]
    # What was half written is gone.
    assert numbers(RunDirectory.at(tmp_path / "run")) == there


def test_a_damaged_checkpoint_does_not_push_a_good_one_out(run: Path, uninterrupted: list[str]):
    folder, number = newest(run)
    flip(folder)
    config = {"checkpoint": {"every_microbatches": 1000, "num_to_keep": 2}}
    assert resume(run, **config)[0] == uninterrupted
    there = [checkpoint.number for checkpoint in list_checkpoints(RunDirectory.at(run))]
    assert number - 1 in there


def test_a_storage_that_fails_to_the_end(tmp_path: Path):
    error, log = fit_on(lambda path: "checkpoints/" in path or path.endswith("summary.json"), tmp_path)
    assert isinstance(error, StorageError)
    assert "training has ended, but checkpoints/final could not be written" in str(error)
    assert "No space left on device" in str(error)
    assert "it has no checkpoint" in str(error)
    assert (tmp_path / "run" / "metrics.parquet").exists()
    assert "checkpoint 1: " in log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, uninterrupted: list[str]):
    config = {**CONFIG, "checkpoint": {"every_microbatches": 20, "num_to_keep": 1}, "run_dir": str(small_disk / "run")}
    with (small_disk.parent / "log").open("w") as file, pytest.raises(StorageError) as caught:
        BlockTrainer(config, console=Console(file=file, width=300)).fit()
    # The first checkpoint fits, a second beside it does not, and so it is with the final weights.
    assert "checkpoints/final could not be written" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "its last checkpoint is 1; once there is room, distblock resume" in str(caught.value)
    assert "training goes on" in (small_disk.parent / "log").read_text()
    shutil.move(small_disk / "run", small_disk.parent / "moved")
    assert resume(small_disk.parent / "moved", **{"checkpoint": config["checkpoint"]})[0] == uninterrupted


def test_ray_trains_checkpoint_config_is_honoured(tmp_path: Path):
    run_config = RunConfig(
        storage_path=str(tmp_path),
        name="run",
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="stages.0.val_loss", checkpoint_score_order="min"
        ),
    )
    result = BlockTrainer({**CONFIG, "checkpoint": {"every_microbatches": 5}}, run_config=run_config).fit()
    assert result.best_checkpoints is not None
    *kept, (final, metrics) = result.best_checkpoints
    assert result.checkpoint == final
    assert metrics == result.metrics
    assert len(kept) == 2
    for checkpoint, figures in kept:
        with checkpoint.as_directory() as folder:
            manifest = json.loads((Path(folder) / "manifest.json").read_text())
        assert manifest["metrics"] == figures
    assert kept[0][1]["stages"][0]["val_loss"] is not None


def test_a_score_that_no_checkpoint_has_is_refused():
    config = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy")
    with pytest.raises(InputError, match=r"checkpoint.score: .*, got 'accuracy'"):
        BlockTrainer(CONFIG, run_config=RunConfig(name="run", checkpoint_config=config))


def made(*losses: float | None) -> list[Checkpoint]:
    return [Checkpoint(number=number, metrics={"val_loss": loss}) for number, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("num_to_keep", "score", "removed"),
    [
        (None, None, []),
        (1, None, [1, 2, 3]),
        (2, None, [1, 2]),
        (2, "val_loss", [1, 2]),
        (3, "val_loss", [2]),
        (9, "val_loss", []),
    ],
)
def test_which_checkpoints_stay(num_to_keep: int | None, score: str | None, removed: list[int]):
    # By hand: losses 2, unknown, 1, and the newest, 3, which stays in any case.
    checkpoints = made(2.0, None, 1.0, 3.0)
    gone = to_remove(checkpoints, num_to_keep=num_to_keep, score=score, order="min")
    assert [checkpoint.number for checkpoint in gone] == removed
