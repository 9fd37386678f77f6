"""Ways to train a network, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from distblock.config import Codec
from distblock.planning.crossover import SHARES, STEPS, Workload, ways
from distblock.planning.profile import measure_codec

WORK = Workload(worker_s=(0.01, 0.02), edge_bytes=(1000.0,), num_parameters=5000, batch_size=10)


def test_bytes_a_sample_by_hand():
    found = {name: way.bytes_per_sample for name, way in ways(WORK).items()}
    assert found["block by block, fp32"] == 1000
    assert found["block by block, int4 or diff4"] == 125
    assert found["pipeline, back-propagation"] == 1000
    # 2 workers: each sends 2 * 1/2 of 20,000 bytes for a step of 20 samples.
    assert found["data parallel"] == 1000
    assert found[f"weights every {STEPS} steps"] == 1000 / STEPS


def test_every_codec_has_its_share_and_it_is_what_crosses():
    assert sorted(codec for codecs in SHARES for codec in codecs) == sorted(get_args(Codec))
    # Few channels of large maps, so that scales and the codebook count for little.
    features = torch.randn(64, 8, 64, 64, generator=torch.Generator().manual_seed(0)).relu()
    for codecs, share in SHARES.items():
        for codec in codecs:
            assert measure_codec(codec, features, repeats=2).share == pytest.approx(share, rel=0.03), codec


def test_each_way_goes_at_the_pace_of_its_slower_part():
    found = ways(WORK)
    blocks, pipeline, parallel = (
        found[name] for name in ("block by block, fp32", "pipeline, back-propagation", "data parallel")
    )
    assert blocks.samples_per_s(1e9) == 50
    assert blocks.samples_per_s(10_000) == 10
    assert pipeline.samples_per_s(1e9) == pytest.approx(50 * 8 / 9)
    assert parallel.samples_per_s(1e9) == pytest.approx(2 / 0.03)


def test_replicas_halve_what_a_part_takes_and_double_the_workers():
    found = ways(replace(WORK, replicas=2))
    assert (found["block by block, fp32"].pace, found["block by block, fp32"].bytes_per_sample) == (100, 500)
    assert found["pipeline, back-propagation"].pace == pytest.approx(100 * 8 / 9)
    # 4 workers: each sends 2 * 3/4 of 20,000 bytes for a step of 40 samples.
    assert found["data parallel"].pace == pytest.approx(4 / 0.03)
    assert found["data parallel"].bytes_per_sample == 750


def test_wider_networks_send_less_for_what_they_compute():
    wide = WORK.widened(4)
    assert (wide.edge_bytes, wide.num_parameters) == ((4000.0,), 80_000)
    assert wide.worker_s == pytest.approx((0.16, 0.32))

    def rate_needed(work: Workload, name: str) -> float:
        way = ways(work)[name]
        return way.pace * way.bytes_per_sample

    assert rate_needed(wide, "block by block, fp32") == pytest.approx(rate_needed(WORK, "block by block, fp32") / 4)
    assert rate_needed(wide, "data parallel") == pytest.approx(rate_needed(WORK, "data parallel"))
