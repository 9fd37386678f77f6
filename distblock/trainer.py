"""BlockTrainer: a training run behind Ray Train's types, so that whoever knows Ray Train is at home.

They take seconds to import: whoever trains by the command line does without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig
from rich.console import Console

from distblock import runs
from distblock.callbacks import Callbacks
from distblock.config import Config, make_config
from distblock.errors import InputError, StageError, WorkerLostError
from distblock.flags import merge
from distblock.learning.blueprint import Build
from distblock.report.monitor import OnEvaluation
from distblock.runs import RunDirectory
from distblock.training import Trained, Training


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
        self._callbacks = Callbacks(run_config)
        config = _with_run_config(given, run_config)
        _check_run_config(run_config)
        self._training = Training(
            config,
            directory=_run_directory(config, run_config),
            model=model,
            dataset=dataset,
            console=console,
            on_evaluation=on_evaluation,
            on_figures=[self._callbacks.report] if self._callbacks.are_any else [],
        )

    @property
    def config(self) -> Config:
        """The settings; once it trains, with what was settled."""
        return self._training.config

    @property
    def run_directory(self) -> RunDirectory:
        """Where the run is written."""
        return self._training.directory

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
        try:
            return _result(self._training.run())
        except (StageError, WorkerLostError) as error:
            self._callbacks.fail(error)
            raise


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


def _run_directory(config: Config, run_config: RunConfig | None) -> RunDirectory | None:
    """Where Ray Train's settings say; None: they do not."""
    if run_config is None or (run_config.storage_path is None and run_config.name is None):
        return None
    if config.run_dir is not None:
        raise InputError(
            f"run_dir: expected it once, got run_dir={config.run_dir} and"
            f" RunConfig(storage_path={run_config.storage_path}, name={run_config.name}); leave one out"
        )
    named = run_config.name
    name = runs.default_name(config) if named is None else runs.check_name(named, where="RunConfig.name")
    location = f"{str(run_config.storage_path or 'runs').rstrip('/')}/{name}"
    if run_config.storage_filesystem is not None:
        return RunDirectory(run_config.storage_filesystem, location)
    return RunDirectory.at(location)


def _result(trained: Trained) -> Result:
    """The only place that makes a Result: Ray documents its constructor as private."""
    directory, summary = trained.directory, trained.summary
    final = Checkpoint(directory.path(runs.FINAL), directory.filesystem)
    earlier = [
        (Checkpoint(directory.path(checkpoint.folder), directory.filesystem), dict(checkpoint.metrics))
        for checkpoint in trained.kept
    ]
    return Result(
        metrics=summary,
        checkpoint=final,
        error=None,
        path=directory.root,
        metrics_dataframe=trained.metrics.to_pandas(),
        best_checkpoints=[*earlier, (final, summary)],
        _storage_filesystem=directory.filesystem,
    )
