"""``distblock why RUN``: what holds a run back, in a few sentences or as JSON; of one under way, who is at what."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from distblock.errors import InputError
from distblock.metrics.exporter import STATUS_PATH
from distblock.report.calibration import Recording, recording
from distblock.report.verdict import Verdict, judge
from distblock.report.words import sentences, standing_sentences
from distblock.runs import STATUS, SUMMARY, TIMELINE

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
        InputError: there is no run, it was not recorded, or its regime cannot be replayed.
    """
    if directory.exists(STATUS) and not directory.exists(SUMMARY):
        return _told(directory.read_json(STATUS), as_json=as_json)
    verdict = judge_run(directory)
    if as_json:
        return json.dumps({**asdict(verdict), "is_rough": verdict.is_rough}, indent=2)
    return "\n".join(sentences(verdict))


def why_at(url: str, *, as_json: bool = False) -> str:
    """The same of a run under way, from its exporter.

    Args:
        url: where the exporter serves, such as ``http://127.0.0.1:9400``.
        as_json: instead of sentences.

    Raises:
        InputError: nobody answers there, no exporter of a run does, or the run has not begun.
    """
    where = f"{url.rstrip('/').removesuffix('/metrics')}{STATUS_PATH}"
    try:
        with urlopen(where, timeout=ANSWER_S) as answer:
            status = json.load(answer)
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
    return _told(status, as_json=as_json)


def _told(status: Mapping[str, Any], *, as_json: bool) -> str:
    return json.dumps(status, indent=2) if as_json else "\n".join(standing_sentences(status, now_s=time.time()))


def judge_run(directory: RunDirectory) -> Verdict:
    """The verdict on a finished run; as for `why`."""
    check_finished(directory, SUMMARY, TIMELINE, verb="why")
    config, summary = directory.read_config(), directory.read_json(SUMMARY)
    return judge_recording(recorded(directory.read_table(TIMELINE), config, summary), config, summary)


def recorded(timeline: pa.Table, config: Config, summary: Mapping[str, Any]) -> Recording:
    """A run's last stretch of which all is known; as for `why`."""
    handled = summary.get("driver_microbatches", 0)
    return recording(timeline, config, driver_s=summary["driver_busy_s"] / handled if handled else 0.0)


def judge_recording(found: Recording, config: Config, summary: Mapping[str, Any]) -> Verdict:
    """The verdict on it."""
    stage_s = [stage["compute_s"] for stage in summary["stages"]]
    codecs = [config.channel.codec_of(edge) for edge in range(1, len(stage_s))]
    # One edge as it is, and a codec has something to save.
    codec = min(codecs, key=lambda codec: codec != "fp32", default="fp32")
    return judge(found, codec=codec, stage_s=stage_s)


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
