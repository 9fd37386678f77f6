"""Jobs on a cluster, over the HTTP interface of its dashboard.

Ray's client takes its address from the environment over the one it is given, waits for ever for something that is no
dashboard, and logs lines of its own. So the address is tried first, with a time limit and the token; whatever is wrong
with it is one line. Following a job survives a connection that breaks: the log is taken up where it ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from distblock.errors import InputError, RunFailedError
from distblock.runtime.project import Packed, pack
from distblock.runtime.tokens import refusal, token_header

CONNECT_S = 10.0
"""Seconds in which the dashboard has to answer the first request."""

POLL_S = 0.5
"""Seconds between two questions about a job that is ending, or for a dashboard that is away."""

AWAY_S = 60.0
"""Seconds without an answer after which following a job is given up."""

STOP_S = 20
"""Seconds that a stopped run has to end in order; then it is killed."""

ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        name: its id.
        state: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_status: of its process, where it ended by itself; negative: by a signal.
        message: the cluster's words on a job that failed.
    """

    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    entrypoint: str
    exit_status: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in ENDED


class Jobs:
    """The jobs of the cluster at an address.

    Args:
        address: of the dashboard, e.g. ``http://head:8265``.

    Raises:
        InputError: the address is of another kind, nothing or something else answers there, or the token is wrong.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        header = token_header()
        _check(self.address, header)
        # Over RAY_ADDRESS, which Ray would prefer to what it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.CRITICAL)
        with self._answers():
            self._client = JobSubmissionClient(self.address, headers=header)

    def submit(self, *, name: str, entrypoint: str, folder: Path) -> Packed:
        """Upload a project and start a command in it, on the head.

        Raises:
            InputError: the project cannot be packed, or there is a job of that name.
        """
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "project.zip"
            packed = pack(folder, archive)
            runtime_env = {
                "working_dir": str(archive),
                # As Ctrl-C would: the run then ends in order.
                "env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
            }
            with self._answers():
                self._client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env)
        return packed

    def list(self) -> list[Job]:
        """All jobs that the cluster remembers, the oldest first; drivers that were not submitted among them."""
        with self._answers():
            jobs = [_job(details) for details in self._client.list_jobs()]
        return sorted(jobs, key=lambda job: (job.started is None, job.started or datetime.min, job.name))

    def stop(self, name: str) -> Job:
        """Stop a job and wait for its end; one that has ended already stays as it is.

        Raises:
            InputError: there is no such job, or it was not submitted.
        """
        with self._answers():
            self._client.stop_job(name)
            while not (job := self._find(name)).has_ended:
                time.sleep(POLL_S)
        return job

    def follow(self, name: str, write: Callable[[str], object]) -> Job:
        """Hand on a job's log from its beginning until the job has ended.

        Raises:
            RunFailedError: the dashboard was away for too long; the job may go on.
        """
        log = _Log(write)
        deadline = time.monotonic() + AWAY_S
        while True:
            before, lost = log.written, None
            try:
                asyncio.run(self._tail(name, log))
                job = self._find(name)
                if job.has_ended:
                    return job
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost = _last_line(error)
            if lost is None or log.written > before:
                deadline = time.monotonic() + AWAY_S
            elif time.monotonic() > deadline:
                raise RunFailedError(
                    f"{name}: lost the cluster at {self.address}: {lost}; the job may go on: see"
                    f" distblock jobs --address {self.address}"
                )
            time.sleep(POLL_S)

    async def _tail(self, name: str, log: _Log) -> None:
        log.rewind()
        async for text in self._client.tail_job_logs(name):
            log.take(text)

    def _find(self, name: str) -> Job:
        return _job(self._client.get_job_info(name))

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Ray's errors in one line: what the user can mend, and what the cluster failed at."""
        try:
            yield
        except AuthenticationError:
            raise InputError(f"--address: {refusal(self.address, token_header())}") from None
        except requests.RequestException as error:
            raise RunFailedError(f"lost the cluster at {self.address}: {_last_line(error)}") from None
        except (RuntimeError, ValueError) as error:
            said = _last_line(error)
            if any(words in said for words in ("does not exist", "already exists", "Can only stop")):
                raise InputError(f"{said}; see distblock jobs --address {self.address}") from None
            if "No available agent" in said:
                raise RunFailedError(
                    f"the cluster at {self.address} has no agent that takes jobs: its nodes are still starting, or the"
                    " agent's port is another Ray's: ray start --dashboard-agent-listen-port sets it"
                ) from None
            raise RunFailedError(f"the cluster at {self.address} failed: {said}") from None


class _Log:
    """A job's log, of which every connection brings the whole: what has been written is left out."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.written = 0
        self._write = write
        self._position = 0

    def rewind(self) -> None:
        self._position = 0

    def take(self, text: str) -> None:
        fresh = text[max(0, self.written - self._position) :]
        self._position += len(text)
        if fresh:
            self.written = self._position
            self._write(fresh)


def _check(address: str, header: dict[str, str]) -> None:
    """Whether a Ray dashboard that lets us in answers there."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InputError(
            "--address: expected that of the cluster's dashboard, such as http://head:8265, got"
            f" {address.rpartition('@')[2]}{_instead(address)}"
        )
    try:
        answer = requests.get(f"{address}/api/version", headers=header, timeout=CONNECT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(f"--address: expected a Ray dashboard at {address}, {_what_came(error)}") from None
    if answer.status_code in (401, 403):
        raise InputError(f"--address: {refusal(address, header)}")
    if answer.status_code != 200 or '"ray_version"' not in answer.text:
        raise InputError(
            f"--address: expected a Ray dashboard at {address}, got another service, which answers with status"
            f" {answer.status_code}; the dashboard's port is 8265 unless told otherwise"
        )


def _instead(address: str) -> str:
    if address.startswith("ray://"):
        return "; Ray Client is not for jobs: give the dashboard's address, on port 8265 of the same host"
    if "@" in address:
        return " with a user's name; the token alone lets in"
    return "; put http:// before host and port of the dashboard"


def _what_came(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"got no answer in {CONNECT_S:.0f} s; see that the host and the port, 8265 by default, are right"
    text = str(error)
    if isinstance(error, requests.exceptions.InvalidURL):
        return "which is no address; give scheme, host and port, such as http://head:8265"
    if "refused" in text:
        return "got: connection refused; start it with ray start --head --include-dashboard=true, or mend the port"
    if "Name or service" in text or "name resolution" in text:
        return "got: no host of that name"
    if "BadStatusLine" in text or "Connection aborted" in text:
        return "got something that does not speak HTTP; the dashboard's port is 8265 unless told otherwise"
    return f"got: {_last_line(error)}"


def _job(details: JobDetails) -> Job:
    return Job(
        name=details.submission_id or details.job_id or "",
        state=str(details.status),
        started=_time(details.start_time),
        ended=_time(details.end_time),
        entrypoint=details.entrypoint,
        exit_status=details.driver_exit_code,
        message=details.message or "",
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000) if milliseconds else None


def _last_line(error: BaseException) -> str:
    """Of a server's traceback, what it ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^Request failed with status code \d+: |^ValueError: ", "", last).rstrip(".")[:300]
