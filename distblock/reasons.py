"""``distblock why RUN``: what holds a run back, in a few sentences or as JSON; of one under way, who is at what."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distblock.errors import InputError
from distblock.report.calibration import recording
from distblock.report.verdict import Verdict, judge
from distblock.report.words import sentences, standing_sentences
from distblock.runs import STATUS, SUMMARY, TIMELINE

if TYPE_CHECKING:
    from distblock.runs import RunDirectory


def why(directory: RunDirectory, *, as_json: bool = False) -> str:
    """What to print.

    Raises:
        InputError: there is no run, it was not recorded, or its regime cannot be replayed.
    """
    if directory.exists(STATUS) and not directory.exists(SUMMARY):
        status = directory.read_json(STATUS)
        return json.dumps(status, indent=2) if as_json else "\n".join(standing_sentences(status, now_s=time.time()))
    verdict = judge_run(directory)
    if as_json:
        return json.dumps({**asdict(verdict), "is_rough": verdict.is_rough}, indent=2)
    return "\n".join(sentences(verdict))


def verdict_or_none(directory: RunDirectory) -> Verdict | None:
    """The verdict on a finished run, where there can be one."""
    try:
        return judge_run(directory)
    except InputError:
        return None


def judge_run(directory: RunDirectory) -> Verdict:
    """The verdict on a finished run; as for `why`."""
    for name in (SUMMARY, TIMELINE):
        if not directory.exists(name):
            raise InputError(
                f"why: expected a finished run with {name}, found none in {directory.location}; wait for its end, or"
                " name another run"
            )
    config, summary = directory.read_config(), directory.read_json(SUMMARY)
    calls = summary.get("driver_calls", 0)
    recorded = recording(
        directory.read_table(TIMELINE), config, driver_s=summary["driver_busy_s"] / calls if calls else 0.0
    )
    return judge(recorded, codec=config.channel.codec, stage_s=_stage_s(summary))


def _stage_s(summary: dict[str, Any]) -> list[float]:
    return [stage["compute_s"] for stage in summary["stages"]]
