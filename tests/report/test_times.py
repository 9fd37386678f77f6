"""Where workers' seconds went, of a summary that is made up by hand."""

from __future__ import annotations

from typing import Any

import pytest

from distblock.report.times import exposed_share, time_sentences, worker_times


def stage(*, compute_s: float, idle_s: float = 0.0) -> dict[str, Any]:
    return {"compute_s": compute_s, "idle_s": idle_s}


def edge(**seconds: float) -> dict[str, Any]:
    none = dict.fromkeys(("exposed_s", "encode_in_turn_s", "decode_in_turn_s", "backpressure_s"), 0.0)
    return {"transport": "cache file", **none, **seconds}


def summary(**changes: Any) -> dict[str, Any]:
    """Three stages on two workers, for 20 s."""
    return {
        "regime": "wavefront",
        "executor": "ray",
        "inputs": "cache",
        "replicas": 1,
        "samples_per_s": 100.0,
        "wall_s": 20.0,
        "worker_stages": [0, 2],
        # Workers idle before the run begins, too.
        "stages": [stage(compute_s=6.0, idle_s=15.0), stage(compute_s=6.0), stage(compute_s=4.0, idle_s=10.0)],
        "data_edge": edge(exposed_s=0.5),
        "edges": [
            edge(encode_in_turn_s=1.0),
            edge(exposed_s=2.0, encode_in_turn_s=3.0, decode_in_turn_s=1.0, backpressure_s=1.5),
        ],
        **changes,
    }


def test_each_second_of_a_worker_is_told_once():
    first, second = worker_times(summary())
    # The edge between its own stages took its turn, and so did encoding what leaves it: 1 + 3 s beside 0.5 of waiting.
    assert (first.name, first.compute_s, first.exposed_s) == ("stages 0 to 1", 12.0, 4.5)
    assert (first.credit_s, first.input_s, first.other_s) == (1.5, 2.0, 0.0)
    assert (second.name, second.compute_s, second.exposed_s) == ("stage 2", 4.0, 3.0)
    assert (second.credit_s, second.input_s, second.other_s) == (0.0, 8.0, 5.0)


def test_the_exposed_share_is_that_of_the_worker_that_has_most():
    assert exposed_share(summary()) == pytest.approx(4.5 / 20)


def test_of_replicas_the_mean():
    doubled = summary(replicas=2)
    for each in (*doubled["stages"], doubled["data_edge"], *doubled["edges"]):
        each |= {name: 2 * value for name, value in each.items() if isinstance(value, float)}
    # Backpressure is the driver's, of all replicas at once.
    doubled["edges"][1]["backpressure_s"] = 1.5
    assert worker_times(doubled) == worker_times(summary())


def test_in_words():
    about, caches, first, second, busiest, most = time_sentences(summary())
    assert about.startswith("100 samples/s over 20 s of training")
    assert caches == "  (Reading a cache is in waiting for input, writing one in other.)"
    assert first == (
        "  stages 0 to 1: computing 12 s (60.0 %), communication (exposed) 4.5 s (22.5 %), waiting for input 2.0 s"
        " (10.0 %), waiting for a credit 1.5 s (7.5 %)"
    )
    assert second.startswith("  stage 2: waiting for input 8.0 s (40.0 %), other 5.0 s (25.0 %), computing 4.0 s")
    assert busiest == "Computing alone, stages 0 to 1 would be done in 12 s."
    assert most == "Beside computing, workers spend most on waiting for input: 10 s, 25.0 % of all their time."


def test_a_summary_of_an_earlier_version():
    """Its edges say which of them were stored; nothing was told of codecs that took their turn."""
    old = summary(inputs="frozen")
    del old["worker_stages"], old["replicas"]
    for each, transport in zip(old["edges"], ("in process", "object store"), strict=True):
        del each["encode_in_turn_s"], each["decode_in_turn_s"]
        each["transport"] = transport
    first, second = worker_times(old)
    assert (first.name, second.name) == ("stages 0 to 1", "stage 2")
    assert (first.exposed_s, second.exposed_s) == (0.5, 2.0)
