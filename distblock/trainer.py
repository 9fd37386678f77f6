"""BlockTrainer: the one door. Checks everything, runs it, and leaves a run directory behind.

Of Ray it knows only Train's types, so that whoever knows Ray Train is at home.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig
from rich.console import Console

from distblock import edge_codecs, plans, runs
from distblock.attempts import Attempts, Keeper
from distblock.callbacks import Callbacks
from distblock.config import Config, make_config
from distblock.consoles import for_progress
from distblock.errors import InputError, StageError, WorkerLostError
from distblock.flags import merge
from distblock.init_from import as_settled
from distblock.learning.blueprint import Build
from distblock.loggers import Loggers
from distblock.preparation import Prepared, about, make_job, prepare, resolve
from distblock.report.monitor import Monitor, OnEvaluation
from distblock.report.summary import summarize
from distblock.report.trace import trace
from distblock.resuming import check_changes, check_not_ended
from distblock.runs import RunDirectory
from distblock.runs.checkpoints import Checkpoint as Kept
from distblock.runs.checkpoints import list_checkpoints
from distblock.runtime import driver
from distblock.schedule.stopping import Patience


class BlockTrainer:
    """Trains a network block by block.

    Args:
        config: the settings, as a `Config` or a nested mapping of its keys.
        run_config: Ray Train's; ``storage_path`` / ``name`` name the run's directory, ``storage_filesystem`` its place.
        model: your own network, instead of ``config.model.name``: called with ``(in_channels, image_size,
            num_classes)``, returns the blocks in order.
        dataset: your own data, instead of ``config.data.name``; see `distblock.data.open_data`.
        console: where progress goes; default: standard error.
        on_evaluation: is called with a stage and its validation accuracy, after each evaluation.

    Raises:
        InputError: an unknown key or a value out of range.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        *,
        run_config: RunConfig | None = None,
        model: Build | None = None,
        dataset: Callable[..., Any] | None = None,
        console: Console | None = None,
        on_evaluation: OnEvaluation | None = None,
    ) -> None:
        given = config if isinstance(config, Config) else make_config(dict(config or {}))
        self._model = model
        self._dataset = dataset
        self._on_evaluation = on_evaluation
        self._callbacks = Callbacks(run_config)
        self._console = console or for_progress()
        self.config = _with_run_config(resolve(given), run_config)
        _check_run_config(run_config)
        self.run_directory = _run_directory(self.config, run_config)

    def fit(self) -> Result:
        """Train, evaluate, write the run directory.

        Returns:
            ``metrics`` is summary.json, ``path`` the run directory, ``checkpoint`` the final weights,
            ``best_checkpoints`` what was kept, the final weights last, ``metrics_dataframe`` a row per stage and epoch.

        Raises:
            InputError: something that was given cannot be used; nothing was started.
            StageError: a stage failed; the logs so far are in the run directory.
            WorkerLostError: a worker's process ended, more often than the run is to survive; likewise.
            PreemptedError: the run was told to end (SIGTERM); it can be resumed.
            StorageError: results could not be written.
        """
        directory = self.run_directory
        with ExitStack() as stack:
            is_resumed = self.config.resume and directory.exists(runs.CONFIG)
            if is_resumed:
                stack.enter_context(directory.owned())
                check_not_ended(directory)
                self.config = self._as_before(directory.read_config())
            else:
                # Before plans are made and lines are measured, which takes its time.
                directory.check_free()
                if self.config.model.stages == "auto":
                    self.config = plans.planned(
                        self.config, model=self._model, dataset=self._dataset, note=self._console.print
                    )
            needs_initial = not (is_resumed and list_checkpoints(directory))
            prepared = prepare(self.config, model=self._model, dataset=self._dataset, needs_initial=needs_initial)
            job = self._job(prepared)
            if prepared.config.channel.codec == "auto":
                prepared = self._with_codecs(prepared, job)
                job = self._job(prepared)
            self.config = prepared.config
            return self._fit(prepared, job, stack, is_resumed=is_resumed)

    def _as_before(self, before: Config) -> Config:
        """The settings of a run that goes on: what was settled when it began stays.

        Raises:
            InputError: something else changes that cannot.
        """
        config = as_settled(self.config, before)
        if config.model.stages == "auto":
            config = plans.as_before(config, before)
        if config.channel.codec == "auto":
            config = edge_codecs.as_before(config, before)
        config = edge_codecs.cut_elsewhere(config, before, note=self._console.print)
        check_changes(before, config)
        return config

    def _job(self, prepared: Prepared) -> driver.Job:
        job = make_job(prepared, run=self.run_directory.name, model=self._model, dataset=self._dataset)
        if prepared.config.executor == "ray":
            driver.check(job)
        return job

    def _with_codecs(self, prepared: Prepared, job: driver.Job) -> Prepared:
        """Codecs by the lines of this moment."""
        lines = driver.survey(job, note=self._console.print) if prepared.config.executor == "ray" else ()
        rates = {line.edge: line.rate_bytes_per_s for line in lines if line.edge}
        return edge_codecs.settled(prepared, rates, model=self._model, note=self._console.print)

    def _fit(self, prepared: Prepared, job: driver.Job, stack: ExitStack, *, is_resumed: bool) -> Result:
        directory = self.run_directory
        patience = Patience(self.config.regime.patience)
        loggers = stack.enter_context(Loggers(self.config, run=directory.name, note=self._console.print))
        with Monitor(
            self.config,
            run=directory.name,
            blueprint=prepared.blueprint,
            plan=prepared.plan,
            patience=patience,
            console=self._console,
            on_evaluation=self._on_evaluation,
            on_figures=[each.report for each in (self._callbacks, loggers) if each.are_any],
            keep_standing=directory.keep_standing if directory.is_local else None,
        ) as monitor:
            is_new = False
            if not is_resumed:
                is_new = directory.create()
                stack.enter_context(directory.owned())
            attempts = Attempts(prepared, job, directory, monitor, patience, is_resumed=is_resumed)
            directory.write_config(self.config.model_copy(update={"resume": False}))
            keeper = Keeper(directory, note=monitor.note)
            try:
                outcome = attempts.run()
            except BaseException as error:
                if isinstance(error, StageError | WorkerLostError):
                    self._callbacks.fail(error)
                # Whoever starts it again finds no run there that never began.
                if not (monitor.has_begun or is_resumed):
                    directory.withdraw(is_new=is_new)
                raise
            finally:
                directory.forget_standing()
                if monitor.has_begun:
                    _write_logs(keeper, directory, monitor)
            summary = summarize(
                self.config,
                prepared.blueprint,
                monitor.account,
                outcome.state,
                wall_s=monitor.wall_s,
                inputs=prepared.inputs,
                peak_bytes=outcome.peak_bytes,
                lines=monitor.lines,
                memcpy_bytes_per_s=monitor.memcpy_bytes_per_s,
                driver_busy_s=monitor.driver_busy_s,
                driver_calls=monitor.driver_calls,
            )
        loggers.conclude(summary)
        manifest = {**about(prepared), **_figures(summary)}
        # A run with a summary has ended: nobody would go on with it.
        if keeper.write(runs.FINAL, lambda: runs.write_weights(directory, outcome.state, manifest)):
            keeper.write(runs.SUMMARY, lambda: directory.write_json(runs.SUMMARY, summary))
        keeper.check(outcome.kept)
        return _result(directory, summary, monitor, outcome.kept)


def _write_logs(keeper: Keeper, directory: RunDirectory, monitor: Monitor) -> None:
    keeper.write(runs.METRICS, lambda: directory.write_table(runs.METRICS, monitor.metrics_table()))
    keeper.write(runs.HOPS, lambda: directory.write_table(runs.HOPS, monitor.hops_table()))
    timeline = monitor.timeline_table()
    keeper.write(runs.TIMELINE, lambda: directory.write_table(runs.TIMELINE, timeline))
    keeper.write(runs.TRACE, lambda: directory.write(runs.TRACE, json.dumps(trace(timeline)).encode()))


def _check_run_config(run_config: RunConfig | None) -> None:
    """What is asked for and not done must not pass in silence."""
    if run_config is None:
        return
    if getattr(run_config, "worker_runtime_env", None):
        raise InputError(
            f"RunConfig.worker_runtime_env: expected none, got {run_config.worker_runtime_env}; leave it out"
        )


def _with_run_config(config: Config, run_config: RunConfig | None) -> Config:
    """Ray Train's settings go over ours, one by one, unless they are Ray Train's defaults: a RunConfig always holds
    these, and nothing tells whether they were meant."""
    if run_config is None:
        return config
    failure, checkpoint = run_config.failure_config, run_config.checkpoint_config
    theirs = [
        (failure, FailureConfig(), "max_failures", "recovery", "max_failures"),
        (checkpoint, CheckpointConfig(), "num_to_keep", "checkpoint", "num_to_keep"),
        (checkpoint, CheckpointConfig(), "checkpoint_score_attribute", "checkpoint", "score"),
        (checkpoint, CheckpointConfig(), "checkpoint_score_order", "checkpoint", "score_order"),
        (failure, FailureConfig(), "preemption_grace_s", "checkpoint", "grace_s"),
    ]
    values: dict[str, Any] = {}
    for given, default, name, section, key in theirs:
        value = getattr(given, name, None)
        if given is not None and value != getattr(default, name, None):
            values.setdefault(section, {})[key] = value
    return make_config(merge(config.model_dump(), values)) if values else config


def _run_directory(config: Config, run_config: RunConfig | None) -> RunDirectory:
    name = runs.default_name(config)
    if run_config is None or (run_config.storage_path is None and run_config.name is None):
        return RunDirectory.at(config.run_dir or f"runs/{name}")
    if config.run_dir is not None:
        raise InputError(
            f"run_dir: expected it once, got run_dir={config.run_dir} and"
            f" RunConfig(storage_path={run_config.storage_path}, name={run_config.name}); leave one out"
        )
    if run_config.name is not None:
        name = runs.check_name(run_config.name, where="RunConfig.name")
    location = f"{str(run_config.storage_path or 'runs').rstrip('/')}/{name}"
    if run_config.storage_filesystem is not None:
        return RunDirectory(run_config.storage_filesystem, location)
    return RunDirectory.at(location)


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "best_stage": summary["best_stage"],
        "weights_sha256": [stage["weights_sha256"] for stage in summary["stages"]],
    }


def _result(directory: RunDirectory, summary: dict[str, Any], monitor: Monitor, kept: Sequence[Kept]) -> Result:
    """The only place that makes a Result: Ray documents its constructor as private."""
    final = Checkpoint(directory.path(runs.FINAL), directory.filesystem)
    earlier = [
        (Checkpoint(directory.path(checkpoint.folder), directory.filesystem), dict(checkpoint.metrics))
        for checkpoint in kept
    ]
    return Result(
        metrics=summary,
        checkpoint=final,
        error=None,
        path=directory.root,
        metrics_dataframe=monitor.metrics_table().to_pandas(),
        best_checkpoints=[*earlier, (final, summary)],
        _storage_filesystem=directory.filesystem,
    )
