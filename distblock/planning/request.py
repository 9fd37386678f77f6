"""What is asked of a planner: the command line of ``distblock plan``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch

from distblock.config import Codec, Config, make_config
from distblock.errors import InputError
from distblock.flags import check_folder, quantity, read_settings, take_several, whole_number
from distblock.planning.forecast import Telling
from distblock.planning.layout import Seat
from distblock.schedule.replay import Absence

USAGE = """usage: distblock plan [OPTIONS] [--config FILE.yaml] [--KEY VALUE ...]    (the settings of distblock train)

  --seats SPEC ...       workers that there may be, as NODE[:SPEED[:MEMORY]], such as here:1:2gb far:0.5; default:
                         resources.workers, or a worker a core (with
                         resources.gpus_per_worker: for each GPU), on this machine
  --link-rate RATE       between nodes, such as 100mbit; needed where seats are on several nodes
  --cores N              of each node; default: this machine's
  --memory SIZE          of each worker at most, such as 800mb; default: any
  --replicas N ...       of each stage, such as 1 2; --seats are then all workers together, and alike; default:
                         replicas, as many workers for each seat
  --codecs NAME ...      that an edge may have, the preferred one first; default: channel.codec, or
                         channel.auto_codecs
  --simulate N           tell N microbatches of the plan one by one: seconds, and what each worker waits for
  --link-delay TIME      then: each way between nodes, such as 25ms
  --away W:BEGIN-END ... then: workers that are away from one second to another, such as 1:10-40
  --to FILE.yaml         write the settings with the plan in them
"""

OWN = (
    "--seats",
    "--link-rate",
    "--cores",
    "--memory",
    "--replicas",
    "--codecs",
    "--to",
    "--simulate",
    "--link-delay",
    "--away",
)

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"ms": 1e-3, "s": 1.0}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be planned, and with what.

    Attributes:
        config: the run's settings.
        seats: workers that there may be.
        link_bytes_per_s: between nodes.
        cores: of each node; none: this machine's.
        replicas: that a stage may have, the seats being all workers together; none: as the settings say, for each seat.
        codecs: that an edge may have.
        telling: what is to be told of the plan; none: nothing.
    """

    config: Config
    seats: tuple[Seat, ...]
    link_bytes_per_s: float = math.inf
    cores: int | None = None
    replicas: tuple[int, ...] = ()
    codecs: tuple[Codec, ...] = ("fp32",)
    telling: Telling | None = None


def read_request(arguments: Sequence[str]) -> tuple[Request, str | None]:
    """What the command line asks for, and where the plan is to be written.

    Raises:
        InputError: an option or a setting cannot be.
    """
    options, rest = take_several(arguments, OWN)
    config = make_config(read_settings(rest))
    memory = quantity(_last(options, "--memory"), "--memory", _BYTES) if "--memory" in options else math.inf
    words = options.get("--seats") or ["here"] * num_workers(config)
    seats = tuple(_seat(word, memory) for word in words)
    if "--link-rate" in options:
        rate = quantity(_last(options, "--link-rate"), "--link-rate", _BITS) / 8
    elif len({seat.node for seat in seats}) > 1:
        raise InputError("--link-rate: expected the rate between the nodes of --seats, such as 100mbit, got nothing")
    else:
        rate = math.inf
    cores = whole_number(_last(options, "--cores"), where="--cores") if "--cores" in options else None
    replicas = tuple(whole_number(word, where="--replicas") for word in options.get("--replicas", []))
    if replicas and (len(set(seats)) > 1 or min(replicas) > len(seats)):
        raise InputError(
            f"--replicas: expected --seats that are alike, {min(replicas)} or more, got {len(seats)},"
            f" {len(set(seats))} of them different"
        )
    codecs: list[Codec] = []
    for name in options.get("--codecs", config.channel.offered):
        if name not in get_args(Codec):
            raise InputError(f"--codecs: expected some of {', '.join(get_args(Codec))}, got {name}")
        codecs.append(name)  # type: ignore[arg-type]
    telling = _telling(options, config, num_seats=len(seats))
    to = _last(options, "--to") if "--to" in options else None
    if to is not None:
        check_folder(to, where="--to")
    request = Request(
        config=config,
        seats=seats,
        link_bytes_per_s=rate,
        cores=cores,
        replicas=replicas,
        codecs=tuple(codecs),
        telling=telling,
    )
    return request, to


def num_workers(config: Config) -> int:
    """As many as the settings say; or one a core, where they need GPUs as many as have some."""
    resources = config.resources
    if resources.workers:
        return resources.workers
    if resources.nodes:
        return max(1, len(resources.nodes) // config.replicas)
    if resources.gpus_per_worker:
        return max(1, int(torch.cuda.device_count() / resources.gpus_per_worker))
    return len(os.sched_getaffinity(0))


def _seat(word: str, memory_bytes: float) -> Seat:
    node, *more = word.split(":")
    try:
        speed = float(more[0]) if more else 1.0
    except ValueError:
        speed = 0.0
    if not node or len(more) > 2 or speed <= 0:
        raise InputError(f"--seats: expected NODE, NODE:SPEED or NODE:SPEED:MEMORY, such as here:0.5:2gb, got {word}")
    own = quantity(more[1], "--seats", _BYTES) if len(more) == 2 else memory_bytes
    return Seat(node=node, speed=speed, memory_bytes=own)


def _telling(options: dict[str, list[str]], config: Config, *, num_seats: int) -> Telling | None:
    if "--simulate" not in options:
        for name in ("--link-delay", "--away"):
            if name in options:
                raise InputError(f"{name}: expected --simulate N beside it, which tells the plan as a run; got none")
        return None
    absences = sorted(
        (_absence(word, num_seats) for word in options.get("--away", [])), key=lambda each: (each.place, each.begin_s)
    )
    if any(one.place == other.place and one.end_s > other.begin_s for one, other in pairwise(absences)):
        raise InputError("--away: expected times that do not overlap of each worker, got some that do")
    return Telling(
        microbatches=whole_number(_last(options, "--simulate"), where="--simulate"),
        delay_s=quantity(_last(options, "--link-delay"), "--link-delay", _SECONDS)
        if "--link-delay" in options
        else 0.0,
        absences=absences,
        in_flight=config.channel.max_in_flight,
    )


def _absence(word: str, num_seats: int) -> Absence:
    found = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", word)
    if found is None or int(found[1]) >= num_seats or float(found[2]) >= float(found[3]):
        raise InputError(
            f"--away: expected WORKER:BEGIN-END in seconds, such as 1:10-40, WORKER 0 to {num_seats - 1}, got {word}"
        )
    return Absence(place=int(found[1]) + 1, begin_s=float(found[2]), end_s=float(found[3]))


def _last(options: dict[str, list[str]], name: str) -> str:
    return options[name][-1] if options[name] else ""
