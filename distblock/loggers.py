"""TensorBoard and MLflow: a run's figures under stable names, as stages are validated, and its settings.

Both packages are extras. Neither is waited for while the run goes on: their own threads write and send.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Literal, Protocol, Self
from urllib.error import HTTPError
from urllib.request import urlopen

from distblock.config import Config
from distblock.errors import InputError
from distblock.flags import leaves

ANSWER_S = 10.0
"""Seconds within which MLflow's server has to answer."""

MOST_PARAMETERS = 100
"""That MLflow takes at once."""

LONGEST = 6000
"""Characters of a parameter that MLflow takes."""

MOST_TOLD = 200
"""Characters of an error of MLflow's that are told: some are whole pages."""

Ending = Literal["FINISHED", "FAILED"]


class Logger(Protocol):
    """Where figures go."""

    def report(self, figures: Mapping[str, float]) -> None:
        """Take a stage's figures, see `distblock.metrics.figures.stage_figures`."""
        ...

    def end(self, ending: Ending, figures: Mapping[str, float]) -> None:
        """Take the figures of the whole run, and close."""
        ...


class Loggers:
    """Those that the settings ask for; a context manager that closes them.

    Args:
        config: the run's settings.
        run: its name.
        note: is told what could not be sent in the end.

    Raises:
        InputError: a package is missing, a folder cannot be written, or nobody answers.
    """

    def __init__(self, config: Config, *, run: str, note: Callable[[str], None]) -> None:
        self._loggers: list[Logger] = []
        self._in_the_end: Mapping[str, float] = {}
        try:
            if config.metrics.mlflow is not None:
                self._loggers.append(MLflow(config.metrics.mlflow, run=run, config=config, note=note))
            if config.metrics.tensorboard is not None:
                self._loggers.append(TensorBoard(config.metrics.tensorboard, run=run, config=config))
        except InputError:
            for logger in self._loggers:
                logger.end("FAILED", {})
            raise

    @property
    def are_any(self) -> bool:
        """Somebody wants to be told."""
        return bool(self._loggers)

    def report(self, figures: Mapping[str, float]) -> None:
        """Tell a stage's figures."""
        for logger in self._loggers:
            logger.report(figures)

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """The run has ended in order: what is told at the end."""
        figures = {name: summary[name] for name in ("test_accuracy", "wall_s")}
        figures |= {
            f"stages/{place}/test_accuracy": each["test_accuracy"] for place, each in enumerate(summary["stages"])
        }
        self._in_the_end = figures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for logger in self._loggers:
            logger.end("FINISHED" if kind is None else "FAILED", self._in_the_end)


class TensorBoard:
    """Event files in a folder of the run's name.

    Args:
        folder: that TensorBoard is pointed at.
        run: the run's name.
        config: its settings.

    Raises:
        InputError: the package is missing, or the folder cannot be written.
    """

    def __init__(self, folder: str, *, run: str, config: Config) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"metrics.tensorboard: expected the package tensorboard, got {error}; pip install"
                " distblock[tensorboard]"
            ) from None
        try:
            self._writer = SummaryWriter(f"{folder.rstrip('/')}/{run}")  # a folder, or a URI that TensorBoard reaches
        except OSError as error:
            raise InputError(f"metrics.tensorboard: {folder} cannot be written: {error}") from None
        self._writer.add_text("settings", f"```\n{json.dumps(config.model_dump(mode='json'), indent=2)}\n```")

    def report(self, figures: Mapping[str, float]) -> None:
        """Take a stage's figures."""
        step = int(figures["epoch"])
        for name, value in figures.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, step)

    def end(self, ending: Ending, figures: Mapping[str, float]) -> None:  # noqa: ARG002
        """Take the figures of the whole run, and close."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value)
        self._writer.close()


class MLflow:
    """A run on a tracking server, or in MLflow's files.

    A run of the same name that was cut short is gone on with.

    Args:
        uri: the server's, or whatever else MLflow takes.
        run: the run's name.
        config: its settings.
        note: is told what could not be sent in the end.

    Raises:
        InputError: the package is missing, or nobody answers.
    """

    def __init__(self, uri: str, *, run: str, config: Config, note: Callable[[str], None]) -> None:
        try:
            from mlflow import MlflowClient, MlflowException
        except ImportError as error:
            raise InputError(
                f"metrics.mlflow: expected the package mlflow, got {error}; pip install distblock[mlflow]"
            ) from None
        _check_answers(uri)
        self._note, self._uri, self._failure = note, uri, MlflowException
        self._sent: list[Any] = []
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._id = self._begin(config, run)
        except MlflowException as error:
            reason = " ".join(str(error).split())[:MOST_TOLD]
            raise InputError(f"metrics.mlflow: expected MLflow at {uri}, got: {reason}") from None

    def _begin(self, config: Config, run: str) -> str:
        name = config.metrics.mlflow_experiment
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        if config.resume:
            query = f"attributes.run_name = '{run}' and attributes.status != 'FINISHED'"
            if found := self._client.search_runs([experiment], query, max_results=1):
                self._client.set_terminated(found[0].info.run_id, status="RUNNING")
                return found[0].info.run_id
        from mlflow.entities import Param  # an extra: only for those who have it

        own = self._client.create_run(experiment, run_name=run).info.run_id
        parameters = [Param(key, str(value)[:LONGEST]) for key, value in leaves(config.model_dump(mode="json"))]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(own, params=parameters[first : first + MOST_PARAMETERS])
        return own

    def report(self, figures: Mapping[str, float]) -> None:
        """Take a stage's figures."""
        self._send(figures, int(figures["epoch"]))

    def end(self, ending: Ending, figures: Mapping[str, float]) -> None:
        """Take the figures of the whole run, and wait until all are there."""
        self._send(figures, 0)
        lost = 0
        for sent in self._sent:
            try:
                sent.wait()
            except (self._failure, OSError):
                lost += 1
        with suppress(self._failure, OSError):
            self._client.set_terminated(self._id, status=ending)
        if lost:
            self._note(
                f"MLflow at {self._uri}: {lost} of {len(self._sent)} reports could not be sent; the run's own files"
                " hold all figures"
            )

    def _send(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # an extra: only for those who have it

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in figures.items() if name != "epoch"]
        if metrics:
            self._sent.append(self._client.log_batch(self._id, metrics=metrics, synchronous=False))


def _check_answers(uri: str) -> None:
    """Whether MLflow's server is there: MLflow's own client would try for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_S) as answer:
            said = answer.read(MOST_TOLD).decode(errors="replace")
    except HTTPError as error:
        # Whoever asks for a password lets MLflow's own client in, which has one.
        said = "OK" if error.code in (401, 403) else f"{error.code} {error.reason}"
    except (OSError, ValueError, HTTPException) as error:
        raise InputError(
            f"metrics.mlflow: expected a server at {uri}, nobody answers as one"
            f" ({' '.join(str(error).split())[:MOST_TOLD]}); start one, or leave it out"
        ) from None
    if said.strip() != "OK":
        raise InputError(
            f"metrics.mlflow: expected MLflow's server at {uri}, whose /health says OK, got"
            f" {' '.join(said.split())[:MOST_TOLD] or 'nothing'}; name another"
        )
