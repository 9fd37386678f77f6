"""What a run leaves on disk, or in any place that pyarrow.fs reaches."""

from distblock.runs.directory import (
    CONFIG,
    EARLY_EXIT,
    HOPS,
    METRICS,
    RECENT,
    REPORT,
    STATUS,
    SUMMARY,
    TIMELINE,
    TRACE,
    RunDirectory,
)
from distblock.runs.names import check_name, default_name
from distblock.runs.weights import (
    FINAL,
    State,
    flatten,
    load_weights,
    read_weights,
    read_weights_manifest,
    write_weights,
)

__all__ = [
    "CONFIG",
    "EARLY_EXIT",
    "FINAL",
    "HOPS",
    "METRICS",
    "RECENT",
    "REPORT",
    "STATUS",
    "SUMMARY",
    "TIMELINE",
    "TRACE",
    "RunDirectory",
    "State",
    "check_name",
    "default_name",
    "flatten",
    "load_weights",
    "read_weights",
    "read_weights_manifest",
    "write_weights",
]
