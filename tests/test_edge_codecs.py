"""The codec of each edge by its line: what is chosen, what is kept of it, and who is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from distblock import BlockTrainer, edge_codecs
from distblock.config import Codec, make_config
from distblock.edge_codecs import against_keeping, choose, settled
from distblock.errors import InputError
from distblock.planning.profile import CodecProfile
from distblock.preparation import Prepared, prepare
from distblock.resuming import check_changes
from distblock.runs import RunDirectory

COSTS: dict[Codec, CodecProfile] = {
    "fp32": CodecProfile(encode_s=1e-10, decode_s=1e-10, share=1.0),
    "bf16": CodecProfile(encode_s=2e-10, decode_s=2e-10, share=0.5),
    "int8": CodecProfile(encode_s=2e-9, decode_s=1e-9, share=0.25),
}


@pytest.mark.parametrize(
    ("bytes_per_s", "chosen"), [(2.5e6, "int8"), (1e8, "bf16"), (1e9, "bf16"), (1e10, "fp32"), (math.inf, "fp32")]
)
def test_the_slower_the_line_the_more_is_encoded(bytes_per_s: float, chosen: Codec):
    assert choose(("fp32", "bf16", "int8"), COSTS, bytes_per_s) == chosen


def test_only_what_is_offered_is_chosen():
    assert choose(("fp32", "bf16"), COSTS, 2.5e6) == "bf16"
    assert choose(("int8",), COSTS, math.inf) == "int8"


@pytest.fixture
def prepared() -> Prepared:
    return prepare(make_config({"channel": {"codec": "auto", "auto_codecs": ["fp32", "bf16", "int8"]}}))


def test_edges_between_hosts_have_one_and_those_within_have_none(prepared: Prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edge_codecs, "measure_codec", lambda codec, _, **__: COSTS[codec])
    said: list[str] = []
    found = settled(prepared, {2: 2.5e6}, note=said.append)
    assert found.config.channel.codec == "fp32"
    assert found.config.channel.edge_codecs == {2: "int8"}
    assert said == ["edge 1->2: int8; over 20 Mbit/s a MB of activations takes ms: fp32 400, bf16 200, int8 103"]
    # Credits count what crosses.
    assert found.blueprint.sample_bytes[1] == prepared.blueprint.sample_bytes[1]
    assert found.blueprint.sample_bytes[2] < prepared.blueprint.sample_bytes[2] / 3


def test_codecs_that_keep_samples_say_how_many_they_have_no_room_for():
    model = {"name": "resnet8", "stages": 3}
    # A sample of digits' 8 x 8 images is 16 x 8 x 8 values behind the first stage, and 32 x 4 x 4 behind the second.
    channel = {"codec": "diff4", "edge_codecs": {"1": "vq"}, "codec_cache_bytes": 2 * 512 * 1000}
    found = prepare(make_config({"model": model, "channel": channel}))
    [said] = against_keeping(found)
    assert said.startswith("edge 1->2: diff4 keeps 1,000 of 1,294 samples at each end")
    assert said.endswith(f"{2 * 512 * 1294} would keep all")
    larger = {**channel, "codec_cache_bytes": 2 * 512 * 1294}
    assert list(against_keeping(prepare(make_config({"model": model, "channel": larger})))) == []


def test_differences_of_augmented_images_are_spoken_against():
    values = {"model": {"name": "resnet8", "stages": 3}, "data": {"augment": ["crop"]}}
    [said] = against_keeping(
        prepare(make_config({**values, "channel": {"codec": "diff4", "edge_codecs": {"1": "vq"}}}))
    )
    assert said.startswith("diff4: differences to a sample's last activation, but data.augment (crop) makes each")
    # What follows the activations by a codebook keeps no samples.
    assert list(against_keeping(prepare(make_config({**values, "channel": {"codec": "vq"}})))) == []


def test_a_line_without_a_rate_is_no_reason_for_a_codec(prepared: Prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edge_codecs, "measure_codec", lambda codec, _, **__: COSTS[codec])
    said: list[str] = []
    assert settled(prepared, {1: None}, note=said.append).config.channel.edge_codecs == {}
    assert said == ["edge 0->1: fp32, since its line has no rate"]


def test_an_edge_with_a_codec_of_its_own_keeps_it(prepared: Prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edge_codecs, "measure_codec", lambda codec, _, **__: COSTS[codec])
    channel = prepared.config.channel.model_copy(update={"edge_codecs": {2: "fp16"}})
    config = prepared.config.model_copy(update={"channel": channel})
    changed = Prepared(**{**vars(prepared), "config": config})
    found = settled(changed, {1: 2.5e6, 2: 2.5e6}, note=lambda _: None)
    assert found.config.channel.edge_codecs == {1: "int8", 2: "fp16"}


def test_within_a_host_nothing_is_encoded_whatever_is_offered():
    config = make_config({"channel": {"codec": "auto", "auto_codecs": ["int8", "diff8"]}})
    said: list[str] = []
    found = settled(prepare(config), {}, note=said.append)
    assert found.config.channel.edge_codecs == {}
    assert not said


def test_what_is_measured_is_a_codec_at_the_size_that_crosses(prepared: Prepared):
    said: list[str] = []
    found = settled(prepared, {1: 1e4}, note=said.append)
    assert found.config.channel.edge_codecs == {1: "int8"}


def test_one_host_needs_none_and_the_settings_say_so(tmp_path: Path):
    config: dict[str, Any] = {
        "executor": "local",
        "data": {"fraction": 0.1},
        "regime": {"epochs": 1},
        "channel": {"codec": "auto"},
        "run_dir": str(tmp_path / "run"),
    }
    BlockTrainer(config).fit()
    channel = RunDirectory.at(tmp_path / "run").read_config().channel
    assert (channel.codec, channel.edge_codecs) == ("fp32", {})


def test_a_run_that_goes_on_keeps_what_it_began_with():
    before = make_config({"channel": {"codec": "fp32", "edge_codecs": {1: "bf16"}}})
    now = edge_codecs.as_before(make_config({"channel": {"codec": "auto"}}), before)
    assert now.channel.codec == "fp32"
    assert now.channel.edge_codecs == {1: "bf16"}


def test_what_is_given_beside_auto_is_not_thrown_away():
    before = make_config({"channel": {"edge_codecs": {1: "bf16"}}})
    now = edge_codecs.as_before(make_config({"channel": {"codec": "auto", "edge_codecs": {1: "int8"}}}), before)
    with pytest.raises(InputError, match=r"resume: channel\.edge_codecs\.1: expected bf16, as the run began, got int8"):
        check_changes(before, now)


def test_fewer_stages_have_fewer_edges():
    before = make_config({"model": {"cuts": [1, 2]}, "channel": {"edge_codecs": {1: "bf16", 2: "int8"}}})
    now = make_config({"model": {"cuts": [1]}, "channel": {"edge_codecs": {1: "bf16", 2: "int8"}}})
    said: list[str] = []
    cut = edge_codecs.cut_elsewhere(now, before, note=said.append)
    assert cut.channel.edge_codecs == {1: "bf16"}
    assert said == ["edges 1->2 are no more; their codecs are left out of channel.edge_codecs"]
    check_changes(before, cut)
    assert edge_codecs.cut_elsewhere(before, before, note=said.append) is before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"regime": {"name": "sequential"}}, "auto is for edges that activations cross while all stages train"),
        ({"channel": {"auto_codecs": []}}, "auto_codecs"),
        ({"channel": {"auto_codecs": ["fp32", "diff8"]}, "replicas": 2}, "diff8 remembers what crossed before"),
        ({"channel": {"auto_codecs": ["bf15"]}}, "auto_codecs"),
        (
            {"model": {"stages": "auto"}, "channel": {"edge_codecs": {2: "int8"}}},
            "expected none with model.stages auto",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str):
    channel = {"codec": "auto", **settings.get("channel", {})}
    with pytest.raises(InputError, match=said):
        make_config({**settings, "channel": channel})
