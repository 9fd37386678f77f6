"""Oracle: cells and units written out by hand."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from distblock.report.tables import (
    count,
    decimal,
    duration,
    edges_table,
    hops_table,
    number,
    percent,
    size,
    stages_table,
)


def rendered(table: Table, *, width: int = 100) -> list[str]:
    """Lines as a log of ``width`` columns shows them."""
    file = StringIO()
    Console(file=file, width=width, no_color=True).print(table)
    return file.getvalue().splitlines()


def stage(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "blocks": [f"layer{index}.0", f"layer{index}.1"],
        "num_parameters": 11_181_642,
        "train_loss": 0.41234,
        "val_accuracy": 0.8125,
        "test_accuracy": 0.80444,
        "transport_cost": 0.0123456,
        "compute_s": 754.3,
        "idle_s": 0.0341,
        "peak_memory_bytes": 1_234_567_890,
        **changes,
    }


def edge(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "transport": "object store",
        "hops": 8_437,
        "same_node_hops": 8_437,
        "cross_node_hops": 0,
        "payload_bytes": 884_700_000_000,
        "wire_bytes": 442_400_000_000,
        "encode_s": 123.4,
        "put_s": 110.0,
        "fetch_s": 200.0,
        "decode_s": 0.0123,
        "exposed_s": 101.3,
        "backpressure_s": 754.3,
        "sizes": [size_class(65_536), size_class(2**30, hops=1, wire_bytes=1_073_741_824, **ONE)],
        **changes,
    }


ONE = {
    **dict.fromkeys(("min_s", "p50_s", "p99_s", "p999_s"), 0.034),
    "bandwidth_bytes_per_s": 2.212e9,
    "memcpy_share": None,
    "straggler_share": 0.0,
}


def size_class(upto_bytes: int, **changes: Any) -> dict[str, Any]:
    return {
        "upto_bytes": upto_bytes,
        "hops": 8_436,
        "wire_bytes": 553_000_000,
        "min_s": 0.001,
        "p50_s": 0.002,
        "p99_s": 0.0091,
        "p999_s": 0.02,
        "bandwidth_bytes_per_s": 1.23e9,
        "memcpy_share": 0.4566,
        "straggler_share": 0.0321,
        **changes,
    }


SUMMARY = {
    "best_stage": 1,
    "stages": [stage(0), stage(1, val_accuracy=0.9), stage(2, val_accuracy=None, transport_cost=None)],
    "data_edge": edge("data->0"),
    "edges": [
        edge("0->1", transport="in process", same_node_hops=0, wire_bytes=0, fetch_s=0.0),
        edge("1->2", same_node_hops=0, cross_node_hops=8_437),
        edge("52->53", same_node_hops=1, cross_node_hops=8_436),
    ],
}


def test_stages_by_depth():
    lines = rendered(stages_table(SUMMARY))
    first = next(line for line in lines if line.startswith("0"))
    cells = "0 layer0.0..layer0.1 11.2 M 0.412 81.2 % 80.4 % 0.0123 754 s 34 ms 1.23 GB"
    assert " ".join(first.split()) == cells
    last = next(line for line in lines if line.startswith("2"))
    assert " ".join(last.split()) == "2 layer2.0..layer2.1 11.2 M 0.412 - 80.4 % - 754 s 34 ms 1.23 GB"


def test_the_chosen_stage_alone_is_marked():
    marked = [line.split()[0] for line in rendered(stages_table(SUMMARY)) if " * " in line[:5]]
    assert marked == ["1"]


def test_a_stage_of_one_block_has_its_name():
    summary = {"best_stage": 0, "stages": [stage(0, blocks=["layer1.0"])]}
    assert any(line.split()[:3] == ["0", "*", "layer1.0"] for line in rendered(stages_table(summary)))


def test_edges_and_their_cost():
    lines = rendered(edges_table(SUMMARY))
    data = next(line for line in lines if line.startswith("data->0"))
    cells = "data->0 same node 8,437 885 GB 442 GB 123 s 110 s 200 s 101 s 754 s 2.21 GB/s"
    assert " ".join(data.split()) == cells
    paths = [" ".join(line.split()[1:3]) for line in lines if "->" in line]
    assert paths == ["same node", "in process", "cross node", "mixed 8,437"]


def test_hops_by_size():
    lines = [" ".join(line.split()) for line in rendered(hops_table(SUMMARY)) if "->" in line]
    assert lines[0] == "data->0 64 KiB 8,436 553 MB 1.0 ms 2.0 ms 9.1 ms 20 ms 1.23 GB/s 45.7 % 3.2 %"
    assert lines[1] == "data->0 1 GiB 1 1.07 GB 34 ms 34 ms 34 ms 34 ms 2.21 GB/s - 0.0 %"


def test_within_a_process_there_is_no_bandwidth():
    within = next(line for line in rendered(edges_table(SUMMARY)) if line.startswith("0->1"))
    assert within.split()[-1] == "-"


def test_shares_of_the_lines_between_hosts():
    edges = [edge("0->1", line_share=None), edge("1->2", line_share=0.4696), edge("2->3", line_share=0.0)]
    text = " ".join(rendered(edges_table({**SUMMARY, "data_edge": edge("data->0"), "edges": edges})))
    assert "share of the measured line rate: 1->2 47.0 %, 2->3 0.0 %" in " ".join(text.split())
    assert "line rate" not in " ".join(rendered(edges_table(SUMMARY)))


WIDEST = {
    "best_stage": 53,
    "stages": [
        stage(
            53,
            blocks=["layer1.0", "layer4.2"],
            train_loss=12.3456,
            val_accuracy=1.0,
            transport_cost=0.00123456,
            idle_s=9_876.5,
            compute_s=9_876.5,
        )
    ],
    "data_edge": edge("data->0", transport="in process"),
    "edges": [
        edge("52->53", hops=123_456, encode_s=0.123, put_s=0.456, fetch_s=0.234, exposed_s=0.345, wire_bytes=12_345_678)
    ],
}


@pytest.mark.parametrize("table", [stages_table, edges_table, hops_table])
@pytest.mark.parametrize("summary", [SUMMARY, WIDEST])
def test_tables_fit_100_columns_uncut(table, summary):
    narrow, wide = rendered(table(summary)), rendered(table(summary), width=300)
    assert max(map(len, narrow)) <= 100
    assert "…" not in "".join(narrow)
    assert [line.split() for line in narrow] == [line.split() for line in wide]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(999_600), "1.00 MB"),
        (size(1_234_567), "1.23 MB"),
        (size(12_345), "12.3 kB"),
        (count(9_999), "9,999"),
        (count(11_181_642), "11.2 M"),
        (duration(0), "0 s"),
        (duration(0.00034), "340 µs"),
        (duration(0.034), "34 ms"),
        (duration(0.99999), "1.0 s"),
        (duration(12.34), "12 s"),
        (duration(9_000), "9000 s"),
        (duration(12_600), "3.5 h"),
        (number(0.0123456), "0.0123"),
        (number(2), "2.00"),
        (number(None), "-"),
        (decimal(1.23456), "1.235"),
        (decimal(None), "-"),
        (percent(0.8125), "81.2 %"),
        (percent(None), "-"),
    ],
)
def test_units(text, expected):
    assert text == expected
