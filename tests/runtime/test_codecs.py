"""Codecs between workers, from worker to worker: the plain loop's weights, bit for bit, whatever stays within one and
whoever dies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from disturbed import check, run, undisturbed
from further import further

from distblock import BlockTrainer
from distblock.config import make_config
from distblock.errors import InputError
from distblock.preparation import make_job
from distblock.runtime import driver
from distblock.runtime.faults import Fault

pytestmark = pytest.mark.usefixtures("shared_ray")

SMALL: dict[str, Any] = {"data": {"batch_size": 96, "fraction": 0.5}, "regime": {"epochs": 3}}
FEW: dict[str, Any] = {"recovery": {"kept_bytes": 300_000}, "channel": {"microbatches_per_call": 1}}


def values(*codecs: str, **changes: Any) -> dict[str, Any]:
    """Each edge has one of the codecs; some samples are remembered and others are not."""
    edges = {edge: codecs[(edge - 1) % len(codecs)] for edge in (1, 2)}
    channel = {**FEW["channel"], "edge_codecs": edges, "codec_cache_bytes": 1_000_000, "transport": "worker"}
    return {**SMALL, **FEW, "channel": channel, **changes}


@pytest.mark.parametrize(
    "codecs", [("int4", "diff8"), ("fp8", "vq"), further(("topk", "int8")), further(("diff4", "diff2"))]
)
def test_weights_are_those_of_the_plain_loop(codecs: tuple[str, str]):
    config = values(*codecs)
    assert run(config)[0] == undisturbed(config)[0]


def test_two_workers_and_what_crosses_between_them(tmp_path: Path):
    config = {**values("diff4", "int8"), "resources": {"workers": 2}, "run_dir": str(tmp_path / "run")}
    summary = BlockTrainer(config).fit().metrics
    assert summary is not None
    assert [stage["weights_sha256"] for stage in summary["stages"]] == undisturbed(config)[0]
    shares = [edge["wire_bytes"] / edge["payload_bytes"] for edge in summary["edges"]]
    assert all(share == 0 or share < 0.3 for share in shares)
    assert sum(share > 0 for share in shares) == 1
    # What remembers takes its turn among what is computed, and so does whatever stays within a worker.
    crossed, within = sorted(summary["edges"], key=lambda edge: edge["wire_bytes"] == 0)
    assert (crossed["name"], within["name"]) == ("0->1", "1->2")
    assert crossed["encode_in_turn_s"] > 0.5 * crossed["encode_s"] > 0
    assert crossed["decode_in_turn_s"] > 0.5 * crossed["decode_s"] > 0
    assert (crossed["transport"], within["transport"]) == ("worker to worker", "in process")
    assert crossed["past_store_hops"] == crossed["hops"]
    assert within["encode_in_turn_s"] == within["encode_s"] > 0
    assert summary["data_edge"]["encode_in_turn_s"] == summary["data_edge"]["decode_in_turn_s"] == 0


@pytest.mark.parametrize("codecs", [("topk", "diff2"), further(("vq", "diff4"))])
def test_ends_that_die_come_back_with_what_they_remembered(codecs: tuple[str, str]):
    check(
        values(*codecs),
        Fault(worker=0, turn=12, moment="computed"),
        Fault(worker=1, turn=9, moment="stored"),
        Fault(worker=2, turn=17, moment="before"),
    )


@pytest.mark.further
def test_all_that_go_back_to_a_checkpoint_have_remembered_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    faults = (Fault(worker=1, turn=13, moment="computed"),)

    def job_with_faults(*arguments: Any, **keywords: Any) -> driver.Job:
        return replace(make_job(*arguments, **keywords), faults=faults)

    monkeypatch.setattr("distblock.training.make_job", job_with_faults)
    recovery = {**FEW["recovery"], "scope": "run"}
    config = values("diff4", recovery=recovery, checkpoint={"every_microbatches": 3}, run_dir=str(tmp_path / "run"))
    summary = BlockTrainer(config).fit().metrics
    assert summary is not None
    assert [failure["place"].startswith("checkpoint") for failure in summary["failures"]] == [True]
    assert [stage["weights_sha256"] for stage in summary["stages"]] == undisturbed(values("diff4"))[0]


class CutShortError(Exception):
    """Stands for whatever ends a run in the middle."""


def test_resumed_by_other_workers_with_what_was_remembered(tmp_path: Path):
    def end(stage: int, accuracy: float) -> None:
        if stage == 2:
            raise CutShortError

    config = values("topk", "vq", checkpoint={"every_microbatches": 3}, run_dir=str(tmp_path / "run"))
    with pytest.raises(CutShortError):
        BlockTrainer(config, on_evaluation=end).fit()
    expected = undisturbed(values("topk", "vq"))[0]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    two = BlockTrainer({**config, "resources": {"workers": 2}, "resume": True}).fit().metrics
    alone = {**config, "executor": "local", "run_dir": str(tmp_path / "copy"), "resume": True}
    one = BlockTrainer(alone).fit().metrics
    for summary in (one, two):
        assert summary is not None
        assert [stage["weights_sha256"] for stage in summary["stages"]] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channel": {"codec": "diff4"}, "replicas": 2}, "one replica"),
        ({"channel": {"codec": "topk"}, "regime": {"name": "asynchronous"}}, "parallel regime"),
        ({"channel": {"codec": "int8"}, "regime": {"name": "sequential"}}, "--regime.inputs frozen"),
        ({"channel": {"edge_codecs": {0: "int8"}}}, "edge_codecs"),
        ({"channel": {"codec": "int3"}}, "channel.codec"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        make_config({**SMALL, **changes})


def test_an_edge_that_is_not_there_is_named(tmp_path: Path):
    config = {**SMALL, "channel": {"edge_codecs": {9: "int8"}}, "run_dir": str(tmp_path / "run")}
    with pytest.raises(InputError, match=r"channel\.edge_codecs: expected stages from 1 to 2.*got 9"):
        BlockTrainer(config).fit()


def test_chance_is_the_same_for_shares_of_a_microbatch():
    config = {**SMALL, "channel": {"codec": "int4"}, "replicas": 2, "resources": {"workers": 1}}
    assert run(config)[0] == undisturbed(config)[0]


def test_stages_that_train_one_by_one_on_frozen_inputs():
    config = {**values("int8", "int4"), "regime": {"name": "wavefront", "epochs": 1, "laps": 2, "inputs": "frozen"}}
    assert run(config)[0] == undisturbed({**config, "regime": {**config["regime"], "name": "multi-lap"}})[0]
