"""Workers on Ray give the plain loop's weights, bit for bit.

The oracle is `distblock.local`: one process, one microbatch after the other, no Ray. Each pair runs the same settings
and compares the SHA-256 of every stage's weights and buffers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from further import further

from distblock import BlockTrainer

pytestmark = pytest.mark.usefixtures("shared_ray")

DIGITS: dict[str, Any] = {"regime": {"epochs": 2}, "data": {"batch_size": 96}}
"""1,294 training samples: 13 batches of 96 and a last one of 46."""


def cifar(folder: Path, **data: Any) -> dict[str, Any]:
    """450 training samples: 6 batches of 64 and a last one of 66, its tail of 2 joined."""
    return {"name": "parquet", "path": str(folder), "batch_size": 64, "eval_batch_size": 40, **data}


def weights(config: dict[str, Any], run_dir: Path, **changes: Any) -> list[str]:
    result = BlockTrainer({**config, **changes, "run_dir": str(run_dir)}).fit()
    assert result.metrics is not None
    return [stage["weights_sha256"] for stage in result.metrics["stages"]]


def check_pair(config: dict[str, Any], tmp_path: Path, **resources: Any) -> None:
    expected = weights(config, tmp_path / "local", executor="local")
    assert weights(config, tmp_path / "ray", resources=resources) == expected
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("workers", [2, further(None)])
def test_digits(tmp_path: Path, workers: int | None):
    check_pair(DIGITS, tmp_path, workers=workers)


def test_digits_with_everything_on(tmp_path: Path):
    config = {
        **DIGITS,
        "data": {
            "batch_size": 96,
            "microbatch_size": 32,
            "eval_batch_size": 50,
            "augment": ["crop", "flip", "cutout"],
            "workers": 2,
        },
        "precision": "bf16",
        "channel": {"codec": "bf16", "max_in_flight": 2},
        "model": {"channels_last": True, "classifier": "mlp-sr"},
        "objective": {"varying": True, "label_smoothing": 0.1},
        "optimizer": {"name": "adam", "lr": 0.001, "clip_norm": 1.0, "schedule": "step", "warmup_epochs": 0.5},
    }
    check_pair(config, tmp_path, workers=2)


@pytest.mark.further
def test_twice_in_a_row(tmp_path: Path):
    assert weights(DIGITS, tmp_path / "one") == weights(DIGITS, tmp_path / "two")


@pytest.mark.further
def test_resnet20_in_9_stages_on_cifar10(tmp_path: Path, small_cifar10: Path):
    augment = ["crop", "flip", "cutout"]
    config = {"model": {"name": "resnet20"}, "regime": {"epochs": 1}, "data": cifar(small_cifar10, augment=augment)}
    expected = weights(config, tmp_path / "local", executor="local")
    assert len(expected) == 9
    assert weights(config, tmp_path / "nine") == expected
    assert weights(config, tmp_path / "two", resources={"workers": 2}) == expected


@pytest.mark.further
def test_torchvision_resnet18_in_4_stages_on_cifar10(tmp_path: Path, small_cifar10: Path):
    config = {
        "model": {"name": "torchvision/resnet18", "stages": 4},
        "regime": {"epochs": 1},
        "data": cifar(small_cifar10, augment=["crop", "flip"]),
    }
    expected = weights(config, tmp_path / "local", executor="local")
    assert len(expected) == 4
    assert weights(config, tmp_path / "four") == expected
    assert weights(config, tmp_path / "two", resources={"workers": 2}) == expected
