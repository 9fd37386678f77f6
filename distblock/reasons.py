"""``distblock why RUN``: what holds a run back, in a few sentences or as JSON; of one under way, who is at what."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from distblock.errors import InputError
from distblock.metrics.exporter import RECENT_PATH, STATUS_PATH
from distblock.report.calibration import ONE_STREAM, Recording, recording
from distblock.report.recent import unpack
from distblock.report.times import time_sentences, worker_times
from distblock.report.verdict import Verdict, judge
from distblock.report.words import sentences, standing_sentences
from distblock.runs import RECENT, STATUS, SUMMARY, TIMELINE

if TYPE_CHECKING:
    import pyarrow as pa

    from distblock.config import Config
    from distblock.runs import RunDirectory

ANSWER_S = 10.0
"""Seconds within which an exporter has to answer."""

LONGEST = 200
"""Characters of an answer that are told."""


def why(directory: RunDirectory, *, as_json: bool = False) -> str:
    """What to print.

    Raises:
        InputError: there is no run, or it was not recorded.
    """
    if directory.exists(STATUS) and not directory.exists(SUMMARY):
        recent = directory.read(RECENT) if directory.exists(RECENT) else None
        return _told(directory.read_json(STATUS), recent, as_json=as_json)
    summary = _summary(directory)
    is_told = summary["regime"] in ONE_STREAM and summary["executor"] != "local"
    if not is_told and summary["data_edge"] is not None:
        return _times(summary, as_json=as_json)
    verdict = _judge_finished(directory, summary)
    return json.dumps(_as_json(verdict), indent=2) if as_json else "\n".join(sentences(verdict))


def why_at(url: str, *, as_json: bool = False) -> str:
    """The same of a run under way, from its exporter.

    Args:
        url: where the exporter serves, such as ``http://127.0.0.1:9400``.
        as_json: instead of sentences.

    Raises:
        InputError: nobody answers there, no exporter of a run does, or the run has not begun.
    """
    base = url.rstrip("/").removesuffix("/metrics")
    try:
        status = json.loads(_answer(base + STATUS_PATH))
        if not isinstance(status, dict) or not {"written_s", "workers"} <= status.keys():
            raise ValueError("JSON of another kind")
    except HTTPError as error:
        advice = "its workers are not ready yet: try again" if error.code == 503 else "name a run's directory instead"
        raise InputError(
            f"why: expected a run's exporter at {url}, got {error.code} {error.reason}; {advice}"
        ) from None
    except (OSError, ValueError, HTTPException) as error:
        came = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        raise InputError(
            f"why: expected a run's exporter (--metrics.port) at {url}, got: {came}; or name its directory"
        ) from None
    recent = None
    # Nothing has been recorded yet, or nothing is.
    with suppress(OSError, HTTPException):
        recent = _answer(base + RECENT_PATH)
    return _told(status, recent, as_json=as_json)


def _answer(url: str) -> bytes:
    with urlopen(url, timeout=ANSWER_S) as answer:
        return answer.read()


def _told(status: Mapping[str, Any], recent: bytes | None, *, as_json: bool) -> str:
    """Of a run under way: who is at what, and the verdict on what has just happened."""
    verdict, reason = _verdict_so_far(recent)
    if as_json:
        return json.dumps({**status, "verdict": None if verdict is None else _as_json(verdict)}, indent=2)
    said = [reason] if verdict is None else sentences(verdict)
    return "\n".join([*standing_sentences(status, now_s=time.time()), *said])


def _verdict_so_far(recent: bytes | None) -> tuple[Verdict | None, str]:
    """And if there is none, why."""
    if recent is None:
        return None, (
            "No verdict yet: it asks for some ten seconds of record (metrics.record), by workers, in the parallel or"
            " the end-to-end regime."
        )
    try:
        table, config, figures = unpack(recent)
        return judge_recording(recorded(table, config, figures), config, figures), ""
    except (InputError, ValueError) as error:
        return None, f"No verdict: {str(error).removeprefix('why: ')}"


def _times(summary: Mapping[str, Any], *, as_json: bool) -> str:
    """Of a run that cannot be told again, since it has several streams or no workers: where its seconds went."""
    if not as_json:
        return "\n".join(time_sentences(summary))
    told = {name: summary[name] for name in ("regime", "samples_per_s", "wall_s")}
    return json.dumps({**told, "workers": [asdict(each) for each in worker_times(summary)]}, indent=2)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "is_rough": verdict.is_rough}


def judge_run(directory: RunDirectory) -> Verdict:
    """The verdict on a finished run; as for `why`."""
    return _judge_finished(directory, _summary(directory))


def _summary(directory: RunDirectory) -> dict[str, Any]:
    check_finished(directory, SUMMARY, verb="why")
    return directory.read_json(SUMMARY)


def _judge_finished(directory: RunDirectory, summary: Mapping[str, Any]) -> Verdict:
    check_finished(directory, TIMELINE, verb="why")
    config = directory.read_config()
    return judge_recording(recorded(directory.read_table(TIMELINE), config, summary), config, summary)


def recorded(timeline: pa.Table, config: Config, summary: Mapping[str, Any]) -> Recording:
    """A run's last stretch of which all is known; as for `why`."""
    handled = summary.get("driver_microbatches", timeline.num_rows)
    driver_s = summary["driver_busy_s"] / handled if handled else 0.0
    edges = [summary.get("data_edge"), *summary.get("edges", ())]
    rates = {
        stage: edge["line_rate_bytes_per_s"]
        for stage, edge in enumerate(edges)
        if edge is not None and edge["line_rate_bytes_per_s"]
    }
    return recording(timeline, config, driver_s=driver_s, rates=rates)


def judge_recording(found: Recording, config: Config, summary: Mapping[str, Any]) -> Verdict:
    """The verdict on it."""
    stage_s = [stage["compute_s"] for stage in summary["stages"]]
    # Replicas of two stages need not be on the nodes that one pair of them is on.
    crossing = zip(found.stages, found.crosses, strict=True) if config.replicas == 1 else ()
    codecs = [config.channel.codec_of(stage) for stage, crosses in crossing if stage and crosses]
    # One of them as it is, and a codec has something to save.
    codec = min(codecs, key=lambda codec: codec != "fp32", default="")
    num_blocks = [len(stage["blocks"]) for stage in summary["stages"]]
    return judge(found, codec=codec, stage_s=stage_s, num_blocks=num_blocks)


def check_finished(directory: RunDirectory, *names: str, verb: str) -> None:
    """Whether a run has left some files at its end.

    Raises:
        InputError: it has not.
    """
    for name in names:
        if not directory.exists(name):
            raise InputError(
                f"{verb}: expected a finished run with {name}, found none in {directory.location}; wait for its end, or"
                " name another run"
            )
