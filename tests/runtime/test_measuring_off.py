"""Without recording a run trains the same, and leaves nothing of what hops cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distblock import BlockTrainer
from distblock.errors import InputError
from distblock.pages import report
from distblock.runs import RunDirectory

pytestmark = pytest.mark.usefixtures("shared_ray")

CONFIG: dict[str, Any] = {"data": {"batch_size": 96}, "regime": {"epochs": 1}}


def summary_of(run_dir: Path, **changes: Any) -> dict[str, Any]:
    summary = BlockTrainer({**CONFIG, **changes, "run_dir": str(run_dir)}).fit().metrics
    assert summary is not None
    return summary


def test_without_recording_the_weights_are_the_same(tmp_path: Path):
    recorded = summary_of(tmp_path / "recorded")
    silent = summary_of(tmp_path / "silent", metrics={"record": False})
    for key in ("weights_sha256", "train_loss", "test_accuracy"):
        assert [stage[key] for stage in silent["stages"]] == [stage[key] for stage in recorded["stages"]]
    assert (silent["edges"], silent["data_edge"]) == ([], None)
    assert all(stage["compute_s"] > 0 for stage in silent["stages"])
    for name in ("hops.parquet", "timeline.parquet"):
        assert pq.read_table(tmp_path / "silent" / name).num_rows == 0
        assert pq.read_table(tmp_path / "recorded" / name).num_rows > 0
    with pytest.raises(InputError, match=r"report: expected a run that was recorded"):
        report([RunDirectory.at(tmp_path / "silent")])


def test_an_exporter_with_nothing_to_serve_is_refused():
    with pytest.raises(InputError, match=r"metrics\.port: expected none without metrics\.record, got 0"):
        BlockTrainer({**CONFIG, "metrics": {"record": False, "port": 0}})
