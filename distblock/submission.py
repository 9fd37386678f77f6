"""`distblock submit`, `jobs` and `stop`: a run as a job of a cluster, sent from a machine that is no part of it.

Settings are checked here, before anything is sent, files of settings among them: what travels is the flags that they
come to, so the job's command line, as ``distblock jobs`` shows it, is the whole of what was asked for.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from distblock.config import Config, make_config
from distblock.consoles import for_tables
from distblock.errors import InputError
from distblock.flags import as_flags, read_settings, take_options
from distblock.runs import check_name, default_name
from distblock.runtime.jobs import Job, Jobs

SUBMIT_HELP = """usage: distblock submit --address http://HEAD:8265 [--follow] [--name NAME] [--working-dir DIR]
                        [--python PYTHON] -- [--config FILE.yaml] [--KEY VALUE ...]

  --address        of the cluster's dashboard
  --follow         print the job's log until it ends, and exit with its status
  --name NAME      of the job, and of its run (default: time, data and network)
  --working-dir    folder of the code that the job needs (default: this one); data/ and runs/ in it, hidden files, what
                   Git ignores and files above 10 MiB stay here; distblock itself goes along
  --python         the cluster's Python, as its shell knows it (default: python)

After -- come the arguments of distblock train. Without --run-dir, the run lies in ~/distblock-runs/NAME on the head.
The cluster's token is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""

JOBS_HELP = "usage: distblock jobs --address http://HEAD:8265    (lists the cluster's jobs, the oldest first)"

STOP_HELP = "usage: distblock stop JOB --address http://HEAD:8265    (as Ctrl-C would: the run ends in order)"

SUBMIT_OPTIONS = ("--address", "--name", "--working-dir", "--python")

RUNS = "~/distblock-runs"
"""Where runs lie on the head that were given no place; a job's own folder is removed after it."""

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a cluster, checked.

    Attributes:
        entrypoint: the command that runs on the head.
    """

    name: str
    run_dir: str
    entrypoint: str
    folder: Path
    follow: bool


def submit(arguments: Sequence[str]) -> int:
    """``distblock submit``; returns the exit status: of the job, where it is followed."""
    own, train = _split(arguments)
    if "-h" in own or "--help" in own:
        print(SUBMIT_HELP)
        return 0
    options, others = take_options([word for word in own if word != "--follow"], SUBMIT_OPTIONS)
    _nothing_left(others, "submit", "; the arguments of distblock train come after --")
    request = _request(options, make_config(read_settings(train)), follow="--follow" in own)
    return _send(Jobs(_address(options)), request)


def jobs(arguments: Sequence[str]) -> int:
    """``distblock jobs``."""
    if "-h" in arguments or "--help" in arguments:
        print(JOBS_HELP)
        return 0
    options, others = take_options(arguments, ["--address"])
    _nothing_left(others, "jobs")
    for_tables(160).print(_table(Jobs(_address(options)).list()))
    return 0


def stop(arguments: Sequence[str]) -> int:
    """``distblock stop JOB``."""
    if "-h" in arguments or "--help" in arguments:
        print(STOP_HELP)
        return 0
    options, others = take_options(arguments, ["--address"])
    if len(others) != 1 or others[0].startswith("-"):
        raise InputError(f"stop: expected one job, got {' '.join(others) or 'none'}; see distblock jobs")
    name = check_name(others[0], where="stop")
    print(f"{name}: {Jobs(_address(options)).stop(name).state}")
    return 0


def _request(options: Mapping[str, Sequence[str]], config: Config, *, follow: bool) -> Request:
    if config.address is not None:
        raise InputError(
            f"address: expected none among the arguments of distblock train, got {config.address}: a job joins the"
            " cluster it runs on; put the dashboard's before --"
        )
    name = _last(options, "--name") or f"{default_name(config)}-{secrets.token_hex(2)}"
    check_name(name, where="--name")
    run_dir = _lasting(config.run_dir) or f"{RUNS}/{name}"
    given = config.model_dump(exclude_unset=True) | {"run_dir": run_dir, "address": "auto"}
    words = [_last(options, "--python") or "python", "-m", "distblock", "train", *as_flags(make_config(given))]
    return Request(
        name=name,
        run_dir=run_dir,
        entrypoint=shlex.join(words),
        folder=Path(_last(options, "--working-dir") or ".").resolve(),
        follow=follow,
    )


def _lasting(run_dir: str | None) -> str | None:
    """A place that outlives the job, whose own folder does not."""
    if run_dir is None:
        return None
    if ".." in run_dir.split("/") or not (run_dir.startswith(("/", "~/")) or "://" in run_dir):
        raise InputError(
            "run_dir: expected an absolute path on the cluster, or a URI, without .., since a job's own folder is"
            f" removed after it, got {run_dir}; leave it out for {RUNS}/NAME"
        )
    return run_dir


def _send(cluster: Jobs, request: Request) -> int:
    packed = cluster.submit(name=request.name, entrypoint=request.entrypoint, folder=request.folder)
    for name in packed.too_large:
        _say(f"left out for its size: {name}")
    _say(f"submitted {request.name} with {packed.num_files} files of {request.folder}; its run: {request.run_dir}")
    if not request.follow:
        print(request.name)
        return 0
    try:
        job = cluster.follow(request.name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        return _interrupted(cluster, request.name)
    status = _exit_status(job)
    if job.state == "FAILED" and job.exit_status is None:
        _say(f"{job.name} failed before it began: {' '.join(job.message.split())[:500]}")
    elif status:
        _say(f"{job.name}: {job.state}, exit status {status}")
    return status


def _interrupted(cluster: Jobs, name: str) -> int:
    """Ctrl-C is for this command; whether it is for the job, too, is asked where somebody can answer."""
    # The connection was cut in the middle of things, of which asyncio would tell after the last word.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    how = f"distblock stop {name} --address {cluster.address}"
    if sys.stdin.isatty() and _yes(f"\nstop {name} as well? [y/N] "):
        _say(f"{name}: {cluster.stop(name).state}")
    else:
        _say(f"{name} goes on; stop it with {how}")
    return INTERRUPTED


def _yes(question: str) -> bool:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(question, end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _exit_status(job: Job) -> int:
    """As a shell would have it: its process's own, above 128 for a signal, 130 where it was stopped."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return INTERRUPTED
    status = job.exit_status or 1
    return status if status > 0 else 128 - status


def _table(listed: Sequence[Job]) -> Table:
    table = Table()
    for heading in ("job", "state", "started", "ended"):
        table.add_column(heading, no_wrap=True)
    table.add_column("entrypoint", overflow="fold")
    for job in listed:
        state = f"{job.state} ({_exit_status(job)})" if job.state == "FAILED" else job.state
        texts = (job.name, state, _moment(job.started), _moment(job.ended), job.entrypoint)
        # What others have submitted may hold markup, or what a terminal obeys.
        table.add_row(*(Text("".join(sign if sign.isprintable() else "?" for sign in text)) for text in texts))
    return table


def _moment(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in arguments:
        return arguments, []
    at = list(arguments).index("--")
    return arguments[:at], arguments[at + 1 :]


def _address(options: Mapping[str, Sequence[str]]) -> str:
    address = _last(options, "--address")
    if address is None:
        raise InputError("--address: expected that of the cluster's dashboard, such as http://head:8265, got none")
    return address


def _last(options: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = options.get(name)
    if values is not None and not values[-1]:
        raise InputError(f"{name}: expected a value, got none")
    return values[-1] if values else None


def _nothing_left(words: Sequence[str], verb: str, hint: str = "") -> None:
    if words:
        raise InputError(f"{words[0]}: not an option of distblock {verb}{hint or f'; see distblock {verb} --help'}")


def _say(text: str) -> None:
    print(f"distblock: {text}", file=sys.stderr)
