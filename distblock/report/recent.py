"""What has just happened in a run under way: the end of its timeline so far, and what a verdict asks for beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distblock.config import Config, make_config
from distblock.schedule.parcels import LARGEST

ROWS = 2_000
"""Of the timeline, at least: some hundred microbatches of a few workers."""

ON_THE_WAY = 4 * LARGEST
"""Microbatches that a worker may be ahead of the next one."""


def num_rows(places: int) -> int:
    """Of the timeline, so that there are microbatches which all places, data and workers, have passed."""
    return max(ROWS, (ON_THE_WAY * places + 10 * LARGEST) * places)


_KEY = b"distblock"


def pack(timeline: pa.Table, config: Config, figures: Mapping[str, Any]) -> bytes:
    """As a Parquet file.

    Args:
        timeline: rows as in ``timeline.parquet``.
        config: the run's settings, of which those that a verdict asks for go along: others may be secret.
        figures: of the keys of ``summary.json``, those that there are so far.
    """
    asked = {"regime": {"name"}, "replicas": True, "channel": True, "data": {"prefetch", "workers"}}
    about = {"config": config.model_dump(mode="json", include=asked), "figures": figures}
    content = io.BytesIO()
    pq.write_table(timeline.replace_schema_metadata({_KEY: json.dumps(about)}), content)
    return content.getvalue()


def unpack(content: bytes) -> tuple[pa.Table, Config, dict[str, Any]]:
    """What was packed.

    Raises:
        ValueError: it is something else.
    """
    table = pq.read_table(pa.BufferReader(content))
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise ValueError("Parquet of another kind")
    about = json.loads(metadata[_KEY])
    return table, make_config(about["config"]), about["figures"]
