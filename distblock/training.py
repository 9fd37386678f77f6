"""A run from its settings to its directory: checks everything, trains, evaluates, and writes down what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console

from distblock import edge_codecs, plans, runs
from distblock.attempts import Attempts, Keeper
from distblock.config import Config
from distblock.consoles import for_progress
from distblock.init_from import as_settled
from distblock.learning.blueprint import Build
from distblock.loggers import Loggers
from distblock.preparation import Prepared, about, make_job, prepare, resolve
from distblock.report.monitor import Monitor, OnEvaluation, OnFigures
from distblock.report.summary import summarize
from distblock.report.trace import trace
from distblock.resuming import check_changes, check_not_ended
from distblock.runs import RunDirectory
from distblock.runs.checkpoints import Checkpoint, list_checkpoints
from distblock.runtime import driver
from distblock.schedule.stopping import Patience


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of a run.

    Attributes:
        directory: the run.
        summary: what summary.json holds.
        metrics: a row per stage and epoch.
        kept: the checkpoints that are there, in order; the final weights are not among them.
    """

    directory: RunDirectory
    summary: dict[str, Any]
    metrics: pa.Table
    kept: Sequence[Checkpoint]


class Training:
    """A run that is to be, or to go on.

    Args:
        config: the settings.
        directory: where it is written; default: where the settings say.
        model: your own network, instead of ``config.model.name``; see `distblock.trainer.BlockTrainer`.
        dataset: your own data, instead of ``config.data.name``; see `distblock.data.open_data`.
        console: where progress goes; default: standard error.
        on_evaluation: is called with a stage and its validation accuracy, after each evaluation.
        on_figures: are called with a stage's figures, likewise.

    Attributes:
        config: the settings; once it trains, with what was settled.
        directory: where it is written.

    Raises:
        InputError: the settings name a place that cannot be reached.
    """

    def __init__(
        self,
        config: Config,
        *,
        directory: RunDirectory | None = None,
        model: Build | None = None,
        dataset: Callable[..., Any] | None = None,
        console: Console | None = None,
        on_evaluation: OnEvaluation | None = None,
        on_figures: Sequence[OnFigures] = (),
    ) -> None:
        self.config = resolve(config)
        self.directory = directory or RunDirectory.at(config.run_dir or f"runs/{runs.default_name(config)}")
        self._model = model
        self._dataset = dataset
        self._console = console or for_progress()
        self._on_evaluation = on_evaluation
        self._on_figures = on_figures

    def run(self) -> Trained:
        """Train, evaluate, write the run directory.

        Raises:
            DistblockError: of the kinds that `distblock.trainer.BlockTrainer.fit` names.
        """
        directory = self.directory
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
            for line in edge_codecs.against_keeping(prepared):
                self._console.print(line)
            return self._train(prepared, job, stack, is_resumed=is_resumed)

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
        job = make_job(prepared, run=self.directory.name, model=self._model, dataset=self._dataset)
        if prepared.config.executor == "ray":
            driver.check(job)
        return job

    def _with_codecs(self, prepared: Prepared, job: driver.Job) -> Prepared:
        """Codecs by the lines of this moment."""
        lines = driver.survey(job, note=self._console.print) if prepared.config.executor == "ray" else ()
        rates = {line.edge: line.rate_bytes_per_s for line in lines if line.edge}
        return edge_codecs.settled(prepared, rates, model=self._model, note=self._console.print)

    def _train(self, prepared: Prepared, job: driver.Job, stack: ExitStack, *, is_resumed: bool) -> Trained:
        directory = self.directory
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
            on_figures=[*self._on_figures, *([loggers.report] if loggers.are_any else [])],
            keep_standing=directory.keep_standing if directory.is_local else None,
            keep_recent=directory.keep_recent if directory.is_local else None,
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
            except BaseException:
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
                driver_microbatches=monitor.driver_microbatches,
            )
        loggers.conclude(summary)
        manifest = {**about(prepared), **_figures(summary)}
        # A run with a summary has ended: nobody would go on with it.
        if keeper.write(runs.FINAL, lambda: runs.write_weights(directory, outcome.state, manifest)):
            keeper.write(runs.SUMMARY, lambda: directory.write_json(runs.SUMMARY, summary))
        keeper.check(outcome.kept)
        return Trained(directory=directory, summary=summary, metrics=monitor.metrics_table(), kept=outcome.kept)


def _write_logs(keeper: Keeper, directory: RunDirectory, monitor: Monitor) -> None:
    keeper.write(runs.METRICS, lambda: directory.write_table(runs.METRICS, monitor.metrics_table()))
    keeper.write(runs.HOPS, lambda: directory.write_table(runs.HOPS, monitor.hops_table()))
    timeline = monitor.timeline_table()
    keeper.write(runs.TIMELINE, lambda: directory.write_table(runs.TIMELINE, timeline))
    keeper.write(runs.TRACE, lambda: directory.write(runs.TRACE, json.dumps(trace(timeline)).encode()))


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "best_stage": summary["best_stage"],
        "weights_sha256": [stage["weights_sha256"] for stage in summary["stages"]],
    }
