"""BlockTrainer: the one door. Checks everything, runs it, and leaves a run directory behind.

Of Ray it knows only Train's types, so that whoever knows Ray Train is at home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig
from rich.console import Console

from distblock import local, runs
from distblock.config import Config, make_config
from distblock.data.dataset import DataSet, open_data
from distblock.errors import InputError
from distblock.learning.blueprint import LABEL_BYTES, Blueprint, Build, Problem, draw_blueprint
from distblock.learning.host import HostSpec
from distblock.learning.initial import initial_state
from distblock.messages import Inputs, Item
from distblock.report.monitor import Monitor, OnEvaluation
from distblock.report.summary import summarize
from distblock.runs import RunDirectory, State
from distblock.runtime import driver
from distblock.schedule.course import AllAtOnce, Course, OneByOne
from distblock.schedule.laps import Cell, Laps, Room, choose_inputs
from distblock.schedule.stopping import Patience
from distblock.schedule.stream import StreamPlan, lap_stream, stream


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has been checked and not begun.

    Attributes:
        room: for what stages leave behind, where they train one by one; else None.
    """

    config: Config
    data: DataSet
    problem: Problem
    blueprint: Blueprint
    plan: StreamPlan
    room: Room | None
    initial: State

    @property
    def inputs(self) -> Inputs | None:
        """What stages train on, where they train one by one."""
        return self.room and self.room.inputs


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
        self._console = console or Console(stderr=True)
        self.config = _with_failure_config(resolve(given), run_config)
        _check_run_config(run_config)
        self.run_directory = _run_directory(self.config, run_config)

    def fit(self) -> Result:
        """Train, evaluate, write the run directory.

        Returns:
            ``metrics`` is summary.json, ``path`` the run directory, ``checkpoint`` the final weights,
            ``metrics_dataframe`` a row per stage and epoch.

        Raises:
            InputError: something that was given cannot be used; nothing was started.
            StageError: a stage failed; the logs so far are in the run directory.
            WorkerLostError: a worker's process ended; likewise.
        """
        prepared = prepare(self.config, model=self._model, dataset=self._dataset)
        job = make_job(prepared, run=self.run_directory.name, model=self._model, dataset=self._dataset)
        if self.config.executor == "ray":
            driver.check(job)
        directory = self.run_directory
        patience = Patience(self.config.regime.patience)
        with Monitor(
            self.config,
            run=directory.name,
            blueprint=prepared.blueprint,
            plan=prepared.plan,
            patience=patience,
            console=self._console,
            on_evaluation=self._on_evaluation,
        ) as monitor:
            directory.create()
            directory.write_config(self.config)
            limit_s = self.config.regime.max_time_s
            course = make_course(
                prepared,
                patience=patience,
                out_of_time=lambda: limit_s is not None and monitor.elapsed_s >= limit_s,
            )
            try:
                state = self._execute(job, prepared, course, monitor)
            finally:
                directory.write_table(runs.METRICS, monitor.metrics_table())
                directory.write_table(runs.HOPS, monitor.hops_table())
            summary = summarize(
                self.config,
                prepared.blueprint,
                monitor.account,
                state,
                wall_s=monitor.wall_s,
                inputs=prepared.inputs,
                peak_bytes=course.peak_bytes,
            )
        directory.write_checkpoint(state, _manifest(prepared, summary))
        directory.write_json(runs.SUMMARY, summary)
        return _result(directory, summary, monitor)

    def _execute(self, job: driver.Job, prepared: Prepared, course: Course, monitor: Monitor) -> State:
        if self.config.executor == "local":
            return local.execute(job.hosts[0], prepared.data, course, monitor, initial=job.initial)
        return driver.execute(job, course, monitor, note=monitor.note)


def resolve(config: Config) -> Config:
    """Settings that follow from others: end-to-end training is one stage of all blocks without transport cost."""
    if config.regime.name != "end-to-end":
        return config
    model = config.model.model_copy(update={"stages": 1})
    objective = config.objective.model_copy(update={"tau": float("inf")})
    return config.model_copy(update={"model": model, "objective": objective})


def prepare(config: Config, *, model: Build | None = None, dataset: Callable[..., Any] | None = None) -> Prepared:
    """Open the data, draw the blueprint, read the weights to start from: all that can fail before anything starts.

    Raises:
        InputError: something that was given cannot be used.
    """
    data = open_data(config.data, seed=config.seed, dataset=dataset)
    info = data.info
    problem = Problem(in_channels=info.channels, image_size=info.image_size, num_classes=info.num_classes)
    blueprint = draw_blueprint(config, problem, build=model)
    plan = StreamPlan(
        num_train=info.num_train,
        num_validation=info.num_validation,
        num_test=info.num_test,
        batch_size=config.data.batch_size,
        microbatch_size=config.data.train_microbatch,
        eval_microbatch_size=config.data.eval_microbatch,
        epochs=config.regime.epochs,
        evaluate_every=config.regime.evaluate_every,
    )
    room = _room(config, blueprint, plan) if config.regime.one_by_one else None
    initial = initial_state(read_initial(config.model.init_from), blueprint) if config.model.init_from else {}
    return Prepared(
        config=config, data=data, problem=problem, blueprint=blueprint, plan=plan, room=room, initial=initial
    )


def make_job(
    prepared: Prepared, *, run: str, model: Build | None = None, dataset: Callable[..., Any] | None = None
) -> driver.Job:
    """What the executors need to know of a run that has been checked.

    Args:
        prepared: the run.
        run: its name.
        model, dataset: the user's own, where they were given in Python.
    """
    hosts = tuple(
        HostSpec(
            run=run,
            config=prepared.config,
            problem=prepared.problem,
            blueprint=prepared.blueprint,
            stages=stages,
            steps_per_epoch=prepared.plan.steps_per_epoch,
            inputs=prepared.inputs,
            build=model,
        )
        for stages in prepared.blueprint.hosts
    )
    return driver.Job(hosts=hosts, info=prepared.data.info, dataset=dataset, initial=prepared.initial)


def make_course(
    prepared: Prepared, *, patience: Patience | None = None, out_of_time: Callable[[], bool] = lambda: False
) -> Course:
    """The streams of a run.

    Args:
        prepared: the run.
        patience: when stages stop early; None: never.
        out_of_time: whether no training microbatch may start any more.
    """
    plan, regime, num_stages = prepared.plan, prepared.config.regime, prepared.blueprint.num_stages
    room = prepared.room
    if room is None:
        return AllAtOnce(stream(plan, out_of_time=out_of_time, patience=patience, num_stages=num_stages))

    def cell_stream(cell: Cell) -> Iterator[Item | None]:
        return lap_stream(
            plan,
            cell,
            epochs=regime.lap_epochs(cell.stage),
            last_lap=cell.lap == regime.laps - 1,
            stores=room.inputs == "cache" and cell.stage < num_stages - 1,
            out_of_time=out_of_time,
            patience=patience,
        )

    laps = Laps(num_stages, regime.laps, at_once=regime.name == "wavefront", room=room)
    return OneByOne(laps, cell_stream)


def _room(config: Config, blueprint: Blueprint, plan: StreamPlan) -> Room:
    num_samples = plan.num_train + plan.num_validation + plan.num_test
    leaving = [size - LABEL_BYTES for size in blueprint.sample_bytes[1:]]
    try:
        return choose_inputs(
            config.regime.inputs,
            augmented=bool(config.data.augment),
            output_bytes=[num_samples * size for size in leaving] + [0],
            weight_bytes=[4 * count for count in blueprint.num_parameters],
            limit_bytes=config.regime.cache_bytes,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def read_initial(location: str) -> dict[str, Any]:
    """Weights to start from: a run directory's final ones, or a safetensors file with the network's own names.

    Returns:
        Arrays by name: ``network.<name>`` and ``classifier.<stage>.<name>``.

    Raises:
        InputError: there is nothing there, or it is damaged.
    """
    if location.endswith(".safetensors"):
        folder, _, name = location.rpartition("/")
        content = RunDirectory.at(folder or ".").read(name)
        return {f"network.{key}": array for key, array in runs.load_weights(content, origin=location).items()}
    return runs.flatten(RunDirectory.at(location).read_state())


def _check_run_config(run_config: RunConfig | None) -> None:
    """What is asked for and not done must not pass in silence."""
    if run_config is None:
        return
    asked = {
        "callbacks": bool(run_config.callbacks),
        "checkpoint_config": run_config.checkpoint_config not in (None, CheckpointConfig()),
    }
    for name, is_set in asked.items():
        if is_set:
            raise InputError(
                f"RunConfig.{name}: expected its default, since runs write their final weights once, got"
                f" {getattr(run_config, name)}; leave it out"
            )


def _with_failure_config(config: Config, run_config: RunConfig | None) -> Config:
    """Ray Train's setting goes over ours, unless it is Ray Train's default, which a RunConfig always holds."""
    if run_config is None or run_config.failure_config in (None, FailureConfig()):
        return config
    recovery = config.recovery.model_copy(update={"max_failures": run_config.failure_config.max_failures})
    return config.model_copy(update={"recovery": recovery})


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


def _manifest(prepared: Prepared, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "data": asdict(prepared.data.info),
        "block_names": prepared.blueprint.block_names,
        "cuts": prepared.blueprint.partition.cuts,
        "best_stage": summary["best_stage"],
        "weights_sha256": [stage["weights_sha256"] for stage in summary["stages"]],
    }


def _result(directory: RunDirectory, summary: dict[str, Any], monitor: Monitor) -> Result:
    """The only place that makes a Result: Ray documents its constructor as private."""
    checkpoint = Checkpoint(directory.path(runs.FINAL), directory.filesystem)
    return Result(
        metrics=summary,
        checkpoint=checkpoint,
        error=None,
        path=directory.root,
        metrics_dataframe=monitor.metrics_table().to_pandas(),
        best_checkpoints=[(checkpoint, summary)],
        _storage_filesystem=directory.filesystem,
    )
