"""Planted causes are named, with the seconds that arithmetic gives. Timelines are made up by hand-made calls."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answers import answering
from microbatches import microbatches

from distblock.config import Config, make_config
from distblock.errors import InputError
from distblock.messages import Parcel
from distblock.metrics.accounting import Account
from distblock.metrics.exporter import Exporter
from distblock.metrics.timeline import TIMELINE_SCHEMA
from distblock.reasons import why_at
from distblock.report.calibration import Recording, recording
from distblock.report.recent import pack, unpack
from distblock.report.verdict import TWICE, judge
from distblock.report.words import sentences, standing_sentences
from distblock.schedule.credits import Limit
from distblock.schedule.replay import Call, Link, Pipeline, replay

COUNT = 40
WIRE_BYTES = 100
CALL = Call(send_s=0.001, fetch_s=0.002, compute_s=0.1, store_s=0.002, reply_s=0.001)
DATA = replace(CALL, fetch_s=0.0, compute_s=0.01)
FIGURES = {
    # As for three workers and the data, whose calls have a microbatch each.
    "driver_busy_s": 4 * COUNT * 0.08,
    "driver_microbatches": 4 * COUNT,
    "stages": [{"compute_s": 4.0, "blocks": [0, 1]}] * 3,
    "data_edge": None,
    "edges": [],
}
CONFIG = make_config({"data": {"prefetch": 4}, "channel": {"max_in_flight": 4}})


def timeline(
    call: Callable[[int, int], Call],
    *,
    driver_s: float = 0.001,
    workers: int = 3,
    rates: dict[int, float] | None = None,
    nodes: str | None = None,
) -> pa.Table:
    """Of a run whose calls are as given by place and number, and whose edges have links of some rates."""
    pipeline = Pipeline(
        parcels=[Parcel((item,)) for item in microbatches(COUNT)],
        call=lambda place, parcel: call(place, parcel.number),
        limits=[Limit(count=4, num_bytes=10**9)] * workers,
        driver_s=driver_s,
        size=lambda edge, parcel: WIRE_BYTES,
        links={
            edge: Link(name=f"l{edge}" if nodes is None else nodes[edge : edge + 2], bytes_per_s=rate)
            for edge, rate in (rates or {}).items()
        },
    )
    rows = []
    for span in replay(pipeline).spans:
        took = call(span.place, span.parcel.number)
        told_s = span.stored_s + took.reply_s
        moments = {"asked_s": span.asked_s, "fetched_s": span.fetched_s, "decoded_s": span.fetched_s}
        moments |= {"started_s": span.started_s, "finished_s": span.finished_s, "encoded_s": span.finished_s}
        moments |= {"stored_s": span.stored_s, "sent_s": span.asked_s - took.send_s, "told_s": told_s}
        on = f"10.0.0.{span.place}" if nodes is None else nodes[span.place]
        rows.append(row(span.place, span.parcel.number, node=on, handled_s=told_s + driver_s, **moments))
    return pa.Table.from_pylist(rows, schema=TIMELINE_SCHEMA)


def recorded(
    call: Callable[[int, int], Call],
    *,
    driver_s: float = 0.001,
    workers: int = 3,
    rates: dict[int, float] | None = None,
) -> Recording:
    """The same, as a verdict asks for it."""
    table = timeline(call, driver_s=driver_s, workers=workers, rates=rates)
    return recording(table, CONFIG, driver_s=driver_s, rates=rates)


def row(place: int, number: int, *, node: str, **moments: float) -> dict[str, Any]:
    about = {"worker": place - 1, "stage": place - 1, "node": node, "number": number, "num_samples": 10}
    about |= {"lap": 0, "epoch": 0, "index": number, "wire_bytes": WIRE_BYTES, "purpose": "train", "part": "train"}
    return {**about, "ready_s": moments["sent_s"], "backpressure_s": 0.0, **moments}


def even(place: int, number: int) -> Call:
    return CALL if place else DATA


def test_a_recording_is_what_was_recorded():
    found = recorded(even)
    assert [parcel.number for parcel in found.parcels] == list(range(COUNT))
    assert found.num_samples == 10 * COUNT
    assert (found.stages, found.nodes) == ((0, 1, 2), ("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
    for (place, number), call in found.calls.items():
        # A data worker's call may have waited for the one before it, which is no sending.
        first = 1 if place == 0 else 0
        assert vars_of(call)[first:] == pytest.approx(vars_of(even(place, number))[first:], abs=1e-9)
    verdict = judge(found, codec="fp32")
    assert verdict.replayed_s == pytest.approx(verdict.measured_s, rel=1e-6)
    assert not verdict.is_rough


def vars_of(call: Call) -> list[float]:
    return [call.send_s, call.fetch_s, call.compute_s, call.store_s, call.reply_s]


def test_a_slow_stage():
    verdict = judge(
        recorded(lambda place, n: replace(even(place, n), compute_s=0.3) if place == 2 else even(place, n)),
        codec="fp32",
    )
    first = verdict.causes[0]
    assert (first.kind, first.place) == ("worker", 2)
    assert first.seconds == pytest.approx(0.2 * COUNT, rel=0.02)
    assert first.beyond_s == pytest.approx(0.2)
    assert verdict.bound_s == pytest.approx(0.3 * COUNT)
    # Half of its computing: 0.15 a microbatch, and 0.35 until the last worker has the first.
    split = next(each for each in verdict.what_ifs if "half" in each.change)
    assert split.samples_per_s == pytest.approx(10 * COUNT / (0.15 * COUNT + 0.35), rel=0.05)


def test_a_slow_edge():
    """Four credits, each of which is out while the sender computes, and while its own microbatch is fetched and
    computed: that is what four microbatches take, where computing them takes 0.1 each."""
    found = recorded(lambda place, n: replace(even(place, n), fetch_s=2.0) if place == 3 else even(place, n))
    first = judge(found, codec="fp32").causes[0]
    assert (first.kind, first.place) == ("edge", 3)
    assert first.seconds == pytest.approx(((0.1 + 2.0 + 0.1) / 4 - 0.1) * COUNT, rel=0.05)
    assert "edge 1->2 (10.0.0.2 to 10.0.0.3)" in first.where


def test_calls_that_wait_behind_the_data_belong_to_the_edge():
    """On a slow line between two hosts the driver's call and its answer take as long as what is sent beside them."""

    def slow(place: int, number: int) -> Call:
        if place != 3 or number % 8 == 0:  # now and then the line is free
            return even(place, number)
        return replace(CALL, fetch_s=1.0, send_s=0.5, reply_s=0.5)

    verdict = judge(recorded(slow), codec="fp32")
    first = verdict.causes[0]
    assert (first.kind, first.place) == ("edge", 3)
    # Without it, nothing is left but computing.
    assert verdict.replayed_s - first.seconds == pytest.approx(0.1 * COUNT, rel=0.15)
    # Four are on their way; all but computing them takes half as long on a link twice as fast.
    (twice,) = [each for each in verdict.what_ifs if each.change == TWICE]
    gained = (0.1 + 0.5 + 1.0 + 0.1 + 0.5) / (0.1 + 0.25 + 0.5 + 0.1 + 0.25)
    assert twice.samples_per_s / verdict.samples_per_s == pytest.approx(gained, rel=0.05)


def test_large_parcels_on_a_slow_edge_are_no_stops():
    """A parcel takes as long on its way as it has microbatches; the last one of a pass has few."""

    def call(place: int, size: int) -> Call:
        slow_s = 0.13 * size if place == 2 else 0.002
        return replace(CALL if place else DATA, compute_s=0.01 * size, fetch_s=slow_s if place else 0.0)

    first, *others = judge(in_parcels(call), codec="fp32").causes
    assert (first.kind, first.place) == ("edge", 2)
    assert [cause for cause in others if cause.kind == "stopped worker"] == []


def test_a_driver_that_is_busy_with_every_microbatch():
    """However many a call has: its calls have 1 to 16, which nothing else makes uneven."""

    def call(place: int, size: int) -> Call:
        return replace(CALL if place else DATA, compute_s=0.001 * size)

    verdict = judge(in_parcels(call, driver_s=0.05), codec="fp32")
    first = verdict.causes[0]
    assert first.kind == "driver"
    # Three places, 110 microbatches.
    assert verdict.replayed_s == pytest.approx(3 * 110 * 0.05, rel=0.05)
    assert first.seconds == pytest.approx(3 * 110 * 0.05 - 110 * 0.001, rel=0.05)


def in_parcels(call: Callable[[int, int], Call], *, driver_s: float = 0.001) -> Recording:
    """Of two workers and data on two hosts, 110 microbatches in parcels of 16, 4 and 2, whose calls are as given by
    place and size."""
    stream, parcels = microbatches(110), []
    while stream:
        size = (16, 4, 2)[len(parcels) % 3]
        parcels.append(Parcel(tuple(stream[:size])))
        stream = stream[size:]
    return Recording(
        parcels=tuple(parcels),
        calls={(place, each.number): call(place, len(each.items)) for place in range(3) for each in parcels},
        stages=(0, 1),
        nodes=("a", "a", "b"),
        measured_s=20.0,
        limits=(Limit(count=4, num_bytes=10**9),) * 2,
        num_feeders=1,
        driver_s=driver_s,
        num_samples=1100,
    )


def test_twice_the_link_and_half_the_bytes():
    found = recorded(lambda place, n: replace(even(place, n), fetch_s=2.0) if place == 3 else even(place, n))
    changes = {each.change: each.samples_per_s for each in judge(found, codec="fp32").what_ifs}
    assert changes[TWICE] == pytest.approx(10 / ((0.1 + 1.0 + 0.1) / 4), rel=0.1)
    assert "activations between nodes sent as bf16" in changes
    assert "activations between nodes sent as bf16" not in {each.change for each in judge(found, codec="bf16").what_ifs}


def test_a_link_that_binds_carries_twice_as_much_where_it_is_twice_as_fast():
    """Four parcels wait for each other on it, which is no time of their own."""
    # 0.5 s a microbatch into the last worker.
    found = recorded(even, rates={2: WIRE_BYTES / 0.5})
    verdict = judge(found, codec="fp32")
    assert verdict.replayed_s == pytest.approx(verdict.measured_s, rel=1e-6)
    first = verdict.causes[0]
    assert (first.kind, first.place) == ("edge", 3)
    assert first.seconds == pytest.approx((0.5 - 0.1) * COUNT, rel=0.02)
    (twice,) = [each for each in verdict.what_ifs if each.change == TWICE]
    assert twice.samples_per_s / verdict.samples_per_s == pytest.approx(2, rel=0.02)
    # One more worker beside it changes nothing, wherever it is.
    assert verdict.what_ifs[-1].samples_per_s / verdict.samples_per_s == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("link_s", [0.3, 0.06])
def test_edges_that_share_a_link_wait_for_each_other_once(link_s: float):
    rates: dict[int, float] = dict.fromkeys(range(0, 3, 2), WIRE_BYTES / link_s)
    table = timeline(even, rates=rates, nodes="abab")
    found = recording(table, CONFIG, driver_s=0.001, rates=rates)
    verdict = judge(found, codec="fp32")
    assert {link.name for link in found.links.values()} == {"a to b"}
    assert verdict.replayed_s == pytest.approx(verdict.measured_s, rel=0.01)


@pytest.mark.parametrize("link_s", [0.5, 0.06])
def test_a_link_carries_no_less_than_it_has_shown(link_s: float):
    """What was measured of it before the run is a third of it."""
    table = timeline(even, rates={2: WIRE_BYTES / link_s})
    verdict = judge(recording(table, CONFIG, driver_s=0.001, rates={2: WIRE_BYTES / link_s / 3}), codec="fp32")
    assert verdict.replayed_s == pytest.approx(verdict.measured_s, rel=0.02)


def test_replicas_have_lines_of_their_own():
    config = make_config({"replicas": 2, "data": {"prefetch": 4}, "channel": {"max_in_flight": 4}})
    rows = timeline(even).to_pylist()
    both = [
        {**row, "worker": 2 * row["worker"] + replica} if row["worker"] >= 0 else row
        for row in rows
        for replica in range(2 if row["worker"] >= 0 else 1)
    ]
    found = recording(
        pa.Table.from_pylist(both, schema=TIMELINE_SCHEMA), config, driver_s=0.001, rates={1: 1.0, 2: 1.0}
    )
    assert (found.links, found.sizes) == ({}, {})


def test_what_is_packed_for_a_verdict_holds_no_secrets():
    secret = make_config({"run_dir": "s3://key:s3cret@bucket/run", "metrics": {"mlflow": "http://me:s3cret@host"}})
    content = pack(timeline(even), secret, FIGURES)
    assert b"s3cret" not in content
    _, config, figures = unpack(content)
    assert (config.regime.name, config.channel, figures) == ("parallel", secret.channel, FIGURES)
    with pytest.raises(ValueError, match="another kind"):
        unpack(pack_nothing())


def pack_nothing() -> bytes:
    """A timeline with nothing beside it."""
    content = io.BytesIO()
    pq.write_table(TIMELINE_SCHEMA.empty_table(), content)
    return content.getvalue()


def test_slow_data():
    first = judge(recorded(lambda place, n: CALL if place else replace(DATA, compute_s=0.25)), codec="fp32").causes[0]
    assert first.kind == "data"
    # The data worker stores each of them, too.
    assert first.seconds == pytest.approx((0.25 + 0.002 + 0.001 - 0.1) * COUNT, rel=0.1)


def test_a_starved_driver():
    first = judge(recorded(even, driver_s=0.08), codec="fp32").causes[0]
    assert first.kind == "driver"
    # Four calls a microbatch.
    assert first.seconds == pytest.approx((4 * 0.08 - 0.1) * COUNT, rel=0.1)


def test_a_worker_that_stood_still():
    """What was in flight behind it hides a part of the stop from nobody: the others wait for it in the end."""
    found = recorded(lambda place, n: replace(CALL, compute_s=5.1) if (place, n) == (2, 20) else even(place, n))
    verdict = judge(found, codec="fp32")
    first = verdict.causes[0]
    assert (first.kind, first.place, first.number) == ("stopped worker", 2, 20)
    assert first.seconds == pytest.approx(5.0, rel=0.02)
    assert any(
        "worker 1 (from stage 1, on 10.0.0.2) stood still at microbatch 20" in line for line in sentences(verdict)
    )


def test_an_uneven_worker():
    found = recorded(lambda place, n: replace(CALL, compute_s=0.4) if place == 1 and n % 4 == 0 else even(place, n))
    first = judge(found, codec="fp32").causes[0]
    assert (first.kind, first.place) == ("uneven worker", 1)
    assert first.seconds == pytest.approx(0.3 * COUNT / 4, rel=0.05)


def test_nothing_stands_out():
    lines = list(sentences(judge(recorded(lambda place, n: even(place, n), driver_s=0.0), codec="fp32")))
    assert "Nothing else costs more than 2 % by itself." in lines


def test_stages_are_dealt_out_over_one_worker_more():
    found = recorded(even, workers=2)
    changes = {
        each.change: each.samples_per_s for each in judge(found, codec="fp32", stage_s=[1, 1, 1, 1, 1, 1]).what_ifs
    }
    # 0.2 s a microbatch on three workers.
    assert changes["one worker more, the stages dealt out anew"] == pytest.approx(10 * 3 / 0.2, rel=0.1)


def test_a_single_block_is_not_split():
    change = "one worker more, with half of the slowest one's computing"
    found = recorded(lambda place, n: replace(CALL, compute_s=0.3) if place == 2 else even(place, n))
    for num_blocks, splits in ([(), True], [(1, 2, 1), True], [(2, 1, 2), False]):
        verdict = judge(found, codec="fp32", num_blocks=num_blocks)
        assert (change in {each.change for each in verdict.what_ifs}) == splits


def test_a_replay_that_is_off_is_called_rough():
    verdict = replace(judge(recorded(even), codec="fp32"), replayed_s=1.0)
    assert verdict.is_rough
    assert any("rough" in line for line in sentences(verdict))


@pytest.mark.parametrize("regime", ["sequential", "wavefront", "asynchronous"])
def test_other_regimes_are_refused(regime: str):
    config: Config = make_config({"regime": {"name": regime}})
    with pytest.raises(InputError, match="why: expected a run of the parallel"):
        recording(TIMELINE_SCHEMA.empty_table(), config, driver_s=0.0)


def test_too_little_is_refused():
    with pytest.raises(InputError, match="two calls of every worker"):
        recording(TIMELINE_SCHEMA.empty_table(), CONFIG, driver_s=0.0)


def test_a_run_under_way_by_its_exporter():
    with Exporter(run="a-run", host="127.0.0.1", port=0, account=Account(num_stages=2)) as exporter:
        url = f"http://127.0.0.1:{exporter.port}"
        with pytest.raises(InputError, match="its workers are not ready yet"):
            why_at(url)
        worker = {"who": "worker 1 (stages 1 to 1)", "edge": 1, "at": None, "since_s": 0.0, "waiting": 0}
        exporter.set_standing({"written_s": time.time(), "workers": [worker]})
        for each in (url, f"{url}/metrics", f"{url}/"):
            assert "worker 1 (stages 1 to 1) has nothing to do" in why_at(each)
        told = json.loads(why_at(url, as_json=True))
        assert (told["workers"], told["verdict"]) == ([worker], None)
        assert "No verdict yet: it asks for" in why_at(url)
        exporter.set_recent(pack(timeline(even, driver_s=0.08), CONFIG, FIGURES))
        assert "what holds it back" in why_at(url).lower()
        verdict = json.loads(why_at(url, as_json=True))["verdict"]
        assert verdict["causes"][0]["kind"] == "driver"
        assert verdict["causes"][0]["seconds"] == pytest.approx((4 * 0.08 - 0.1) * COUNT, rel=0.1)
        laps = make_config({"regime": {"name": "wavefront"}})
        exporter.set_recent(pack(timeline(even), laps, FIGURES))
        assert "No verdict: expected a run of the parallel or the end-to-end regime" in why_at(url)
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:abc"):
        with pytest.raises(InputError, match=rf"why: expected a run's exporter \(--metrics\.port\) at {url}"):
            why_at(url)


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"<html>", None])
def test_what_is_no_exporter(answer: bytes | None):
    with answering(answer) as url, pytest.raises(InputError, match="why: expected a run's exporter"):
        why_at(url)


def test_a_run_under_way():
    status = {
        "written_s": 100.0,
        "workers": [
            {"who": "worker 0 (stages 0 to 0)", "edge": 0, "at": None, "since_s": 0.0, "waiting": 0},
            {
                "who": "worker 1 (stages 1 to 1)",
                "edge": 1,
                "at": "epoch 2, training microbatch 7",
                "since_s": 9.5,
                "waiting": 4,
            },
            {
                "who": "worker 2 (stages 2 to 2)",
                "edge": 2,
                "at": None,
                "since_s": 7.5,
                "waiting": 0,
                "blocked": 3,
            },
            {
                "who": "data worker 0",
                "edge": None,
                "at": "epoch 2, training microbatch 9",
                "since_s": 0.1,
                "waiting": 1,
            },
        ],
    }
    first, *workers = standing_sentences(status, now_s=101.0)
    assert first == "Under way, as of 1.0 s ago."
    assert [line.strip() for line in workers] == [
        "worker 1 (stages 1 to 1) has finished nothing for 9.5 s: at epoch 2, training microbatch 7 (computing it, or"
        " fetching it over edge 0->1), with 4 calls given",
        "worker 2 (stages 2 to 2) has been given nothing for 7.5 s: as much is in flight on edge 2->3 as may be"
        " (channel.max_in_flight, channel.max_in_flight_bytes)",
        "data worker 0 has finished nothing for 0.1 s: at epoch 2, training microbatch 9 (reading it)",
        "worker 0 (stages 0 to 0) has nothing to do: nothing has come over edge data->0",
    ]
    assert any("hangs, or it is gone" in line for line in standing_sentences(status, now_s=200.0))
