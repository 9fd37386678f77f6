"""``distblock bench scaling``: its cells, what it makes of a summary, and a small run of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.hosts import missing
from distblock.bench.on_hosts import bits_per_s, cut_images
from distblock.bench.scaling import Cell, Figures, Options, make_cells, make_figures, make_table
from distblock.errors import InputError


def edge(name: str, *, wire_bytes: int, crossed: bool, exposed_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """As in summary.json: 50 hops, 4 s of fetching and 1 s of decoding."""
    hops = {"hops": 50, "cross_node_hops": 50 if crossed else 0}
    return {
        "name": name,
        **hops,
        "wire_bytes": wire_bytes,
        "fetch_s": 4.0,
        "decode_s": 1.0,
        "exposed_s": exposed_s,
        **more,
    }


def figures(cell: Cell, *, line_rate: float | None = 2.5e6, **more: Any) -> Figures:
    summary = {
        "wall_s": 10.0,
        "data_edge": edge("data->0", wire_bytes=1_000_000, crossed=False),
        "edges": [
            edge("0->1", wire_bytes=90_000_000, crossed=False),
            edge("1->2", wire_bytes=20_000_000, crossed=True, exposed_s=3.0, **more),
        ],
    }
    return make_figures(summary, cell, batch_size=32, line_rate=line_rate)


def test_one_host_has_no_link():
    options = Options(hosts=(1, 2), rates=("20mbit", "none"), delays_ms=(0.0, 25.0))
    assert make_cells(options) == [
        Cell(hosts=1),
        Cell(hosts=2, rate="20mbit"),
        Cell(hosts=2),
        Cell(hosts=2, rate="20mbit", delay_ms=25.0),
        Cell(hosts=2, delay_ms=25.0),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hosts": (1, 5)}, r"--hosts: expected no more than 4, .* got 5"),
        ({"hosts": (0,)}, "hosts above 0"),
        ({"rates": ("quick",)}, "--rates: expected rates such as 100mbit or 1gbit, or none, got quick"),
        ({"data_path": "d", "images": 63}, "--images: expected two batches or more, 64, got 63"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        make_cells(Options(**changes))


def test_rates_as_tc_writes_them():
    rates = {"20mbit": 20e6, "1gbit": 1e9, "2.5mbit": 2.5e6, "300kbit": 300e3, "9600bit": 9600.0, "none": float("inf")}
    assert {rate: bits_per_s(rate) for rate in rates} == rates


def test_figures_by_hand():
    found = figures(Cell(hosts=2, rate="20mbit"))
    assert found.samples_per_s == 160.0  # 50 microbatches of 32 in 10 s
    # Of the edges between hosts: what stays on one host loads no line.
    assert found.busiest == found.edges[2]
    assert found.edges[2].exposed_of_run == 0.3
    assert found.edges[2].exposed_of_fetch == 0.6
    assert found.share_of_line == 0.8  # 2 of 2.5 MB/s
    assert [each.line_rate_bytes_per_s for each in found.edges] == [None, None, 2.5e6]


def test_a_rate_that_the_run_has_measured_goes_first():
    assert figures(Cell(hosts=2), line_rate_bytes_per_s=4e6).share_of_line == 0.5
    assert figures(Cell(hosts=2), line_rate_bytes_per_s=None).share_of_line == 0.8


def test_the_table_says_where_the_forwarder_binds():
    one, slow, delayed = Cell(hosts=1), Cell(hosts=2, rate="20mbit", delay_ms=25), Cell(hosts=2, delay_ms=25)
    output = io.StringIO()
    console = Console(width=140, file=output)
    console.print(make_table(Options(), [figures(one, line_rate=None), figures(slow)]))
    assert "20mbit │ 25 ms │" in output.getvalue()
    assert "1->2" in output.getvalue()
    assert "420 Mbit/s" not in output.getvalue()
    console.print(make_table(Options(), [figures(one), figures(delayed)]))
    assert "420 Mbit/s" in output.getvalue()


def test_images_are_cut(tmp_path: Path):
    source, target = tmp_path / "all", tmp_path / "few"
    source.mkdir()
    target.mkdir()
    for part in ("train", "test"):
        table = pa.table({"img": [{"bytes": bytes(8), "path": ""}] * 100, "label": np.arange(100)})
        pq.write_table(table, source / f"{part}.parquet", row_group_size=30)
    cut_images(str(source), target, train=70, test=10)
    assert pq.read_table(target / "train.parquet")["label"].to_pylist() == list(range(70))
    assert len(pq.read_table(target / "test.parquet")) == 10
    with pytest.raises(InputError, match=r"train\.parquet: expected 101 images or more, got 100"):
        cut_images(str(source), target, train=101, test=10)
    with pytest.raises(InputError, match=r"--data-path: expected a folder with train\.parquet"):
        cut_images(str(tmp_path), target, train=1, test=1)


@pytest.mark.further
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_small_run(tmp_path: Path):
    options = "--hosts 2 --rates 100mbit --delays-ms 0 --stages 1 --seconds 0.5 --log cells.jsonl"
    options += " --output cells.json --picture cells.svg"
    done = subprocess.run(
        [sys.executable, "-m", "distblock", "bench", "scaling", *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    [line] = (tmp_path / "cells.jsonl").read_text().splitlines()
    cell = json.loads(line)
    assert json.loads((tmp_path / "cells.json").read_text())["figures"] == [cell]
    assert (tmp_path / "cells.svg").read_text().startswith("<?xml")
    assert cell["cell"] == {"hosts": 2, "rate": "100mbit", "delay_ms": 0.0}
    # Each bundle on a host of its own: the one for data, and the one stage's.
    assert [each["has_crossed"] for each in cell["edges"]] == [True]
    assert cell["edges"][0]["line_rate_bytes_per_s"] > 0
    assert cell["share_of_line"] > 0
