"""The wavefront gives multi-lap's weights, bit for bit.

The oracle is the plain loop in the multi-lap regime: one stage at a time, lap by lap, one process. The wavefront runs
on a worker a stage, or on fewer, all of them at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from further import further

from distblock import BlockTrainer

pytestmark = pytest.mark.usefixtures("shared_ray")

DIGITS: dict[str, Any] = {"data": {"batch_size": 96, "fraction": 0.5}}
AUGMENT = ["crop", "flip"]


def summary(config: dict[str, Any], run_dir: Path, **regime: Any) -> dict[str, Any]:
    changed = {**config, "regime": {"epochs": 1, **config.get("regime", {}), **regime}, "run_dir": str(run_dir)}
    result = BlockTrainer(changed).fit()
    assert result.metrics is not None
    return result.metrics


def weights(summary: dict[str, Any]) -> list[str]:
    return [stage["weights_sha256"] for stage in summary["stages"]]


def check(config: dict[str, Any], tmp_path: Path, **regime: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain multi-lap and the wavefront on workers."""
    alone = summary({**config, "executor": "local"}, tmp_path / "alone", name="multi-lap", **regime)
    wave = summary(config, tmp_path / "wave", name="wavefront", **regime)
    assert weights(wave) == weights(alone)
    assert len(set(weights(alone))) == alone["num_stages"]
    figures = ("val_accuracy", "test_accuracy", "train_loss", "transport_cost")
    for one, other in zip(wave["stages"], alone["stages"], strict=True):
        assert [one[key] for key in figures] == pytest.approx([other[key] for key in figures], rel=1e-12)
    return alone, wave


@pytest.mark.parametrize(("laps", "inputs"), [(4, "cache"), further(1, "cache"), further(2, "frozen")])
def test_digits(tmp_path: Path, laps: int, inputs: str):
    alone, wave = check(DIGITS, tmp_path, laps=laps, inputs=inputs)
    assert wave["inputs"] == inputs
    assert (alone["laps"], alone["num_stages"]) == (laps, 3)


@pytest.mark.further
def test_digits_with_everything_on(tmp_path: Path):
    config = {
        "data": {"batch_size": 96, "microbatch_size": 32, "eval_batch_size": 50, "augment": AUGMENT, "fraction": 0.5},
        "precision": "bf16",
        "channel": {"codec": "bf16"},
        "objective": {"multiplier_step": 1.0, "multiplier_every": 3, "varying": True},
        "optimizer": {"name": "adam", "lr": 0.001, "warmup_epochs": 0.5},
    }
    alone, wave = check(config, tmp_path, laps=2, extra_epochs=1)
    assert wave["inputs"] == alone["inputs"] == "frozen"


def test_unequal_epochs_on_fewer_workers(tmp_path: Path):
    check({**DIGITS, "resources": {"workers": 2}}, tmp_path, laps=2, extra_epochs=1, epochs=1)


def test_cache_and_frozen_weights_agree_where_nothing_is_augmented(tmp_path: Path):
    config = {**DIGITS, "executor": "local", "channel": {"edge_codecs": {"1": "bf16"}}}
    cache, frozen = (
        summary(config, tmp_path / inputs, name="multi-lap", laps=2, inputs=inputs) for inputs in ("cache", "frozen")
    )
    assert weights(cache) == weights(frozen)


@pytest.mark.further
def test_patience_gives_the_same_everywhere(tmp_path: Path):
    alone, wave = check(DIGITS, tmp_path, laps=2, epochs=4, patience=1)
    assert alone["set_aside_peak_bytes"] > 0
    assert wave["epochs"] == alone["epochs"]


def test_a_small_limit_of_caches_slows_the_wavefront_and_changes_nothing(tmp_path: Path):
    alone, wave = check(DIGITS, tmp_path, laps=4, inputs="cache", cache_bytes=12_000_000)
    assert alone["set_aside_peak_bytes"] <= wave["set_aside_peak_bytes"] <= 12_000_000


def test_caches_are_freed(tmp_path: Path):
    summary(DIGITS, tmp_path / "run", name="wavefront", laps=2, cache_dir=str(tmp_path / "caches"))
    assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.further
def test_resnet20_in_9_stages_on_cifar10(tmp_path: Path, small_cifar10: Path):
    data = {"name": "parquet", "path": str(small_cifar10), "batch_size": 64, "fraction": 0.3, "augment": AUGMENT}
    _, wave = check({"model": {"name": "resnet20"}, "data": data}, tmp_path, laps=2)
    assert wave["inputs"] == "frozen"
    assert wave["num_workers"] == 9
