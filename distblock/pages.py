"""``distblock report RUN [RUN ...]``: read finished runs, and write the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distblock.config import FORMAT_VERSION, Config
from distblock.errors import InputError
from distblock.flags import check_folder
from distblock.reasons import check_finished, judge_recording, recorded
from distblock.report.calibration import Recording
from distblock.report.page import Run, make_page
from distblock.runs import METRICS, REPORT, SUMMARY, TIMELINE

if TYPE_CHECKING:
    import pyarrow as pa

    from distblock.runs import RunDirectory


def report(directories: Sequence[RunDirectory], *, to: str | None = None) -> str:
    """Write the report.

    Args:
        directories: of finished runs.
        to: the file; default: ``report.html`` in the run's directory, or here where there are several.

    Returns:
        Where it is.

    Raises:
        InputError: a run has not ended, or is of another version.
    """
    page = make_page([read_run(directory) for directory in directories]).encode()
    if to is None and len(directories) == 1:
        directories[0].write(REPORT, page)
        return directories[0].path(REPORT)
    path = Path(to or REPORT)
    check_folder(to or REPORT, where="--to")
    path.write_bytes(page)
    return str(path)


def read_run(directory: RunDirectory) -> Run:
    """All that the report shows of a run; as for `report`."""
    check_finished(directory, SUMMARY, verb="report")
    summary = directory.read_json(SUMMARY)
    if summary["data_edge"] is None:
        raise InputError(
            f"report: expected a run that was recorded, got {directory.location} with metrics.record false; train it"
            " again without that"
        )
    if summary.get("format_version") != FORMAT_VERSION or "memcpy_bytes_per_s" not in summary:
        raise InputError(
            f"report: expected a run of this version of distblock, got {directory.location} of another; train it again,"
            " or use the version that made it"
        )
    config = directory.read_config()
    timeline = directory.read_table(TIMELINE) if directory.exists(TIMELINE) else None
    if timeline is not None and not timeline.num_rows:
        timeline = None  # the plain loop has no workers to record
    found = None if timeline is None else _recorded_or_none(timeline, config, summary)
    return Run(
        name=directory.name,
        config=config,
        summary=summary,
        metrics=directory.read_table(METRICS).to_pylist(),
        timeline=timeline,
        recording=found,
        verdict=None if found is None else judge_recording(found, config, summary),
        early_exits=directory.read_early_exit(),
    )


def _recorded_or_none(timeline: pa.Table, config: Config, summary: Mapping[str, Any]) -> Recording | None:
    try:
        return recorded(timeline, config, summary)
    except InputError:
        return None
