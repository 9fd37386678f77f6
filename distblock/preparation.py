"""A run before it begins: everything that can fail is tried here, and nothing has been started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from distblock.config import Config
from distblock.data.dataset import DataSet
from distblock.data.opening import open_data
from distblock.errors import InputError
from distblock.init_from import initial_weights, settled
from distblock.learning.blueprint import LABEL_BYTES, Blueprint, Build, Problem, draw_blueprint
from distblock.learning.host import HostSpec
from distblock.messages import Inputs, Item
from distblock.runs import State
from distblock.runtime import driver
from distblock.schedule.course import AllAtOnce, Course, OneByOne
from distblock.schedule.laps import Cell, Laps, Room, choose_inputs
from distblock.schedule.position import Position, TimeUp
from distblock.schedule.stopping import Patience
from distblock.schedule.stream import StreamPlan, lap_stream, pieces, store_stream, stream


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


def resolve(config: Config) -> Config:
    """Settings that follow from others: end-to-end training is one stage of all blocks without transport cost."""
    if config.regime.name != "end-to-end":
        return config
    model = config.model.model_copy(update={"stages": 1})
    objective = config.objective.model_copy(update={"tau": float("inf")})
    return config.model_copy(update={"model": model, "objective": objective})


def prepare(
    config: Config,
    *,
    model: Build | None = None,
    dataset: Callable[..., Any] | None = None,
    needs_initial: bool = True,
) -> Prepared:
    """Open the data, draw the blueprint, read the weights to start from: all that can fail before anything starts.

    Args:
        config: the settings.
        model, dataset: the user's own, where they were given in Python.
        needs_initial: whether the weights to start from are read, and what follows from them is written out in the
            settings; a run that goes on has its own.

    Raises:
        InputError: something that was given cannot be used.
    """
    if needs_initial:
        config = settled(config, dataset=dataset)
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
    _check_shares(config, plan)
    room = _room(config, blueprint, plan) if config.regime.one_by_one else None
    initial = initial_weights(config, info, blueprint) if needs_initial else {}
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
    prepared: Prepared,
    *,
    patience: Patience | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
    position: Position | None = None,
) -> Course:
    """The streams of a run.

    Args:
        prepared: the run.
        patience: when stages stop early; None: never.
        out_of_time: whether no training microbatch may start any more.
        position: where to go on from; None: from the beginning.
    """
    plan, regime, num_stages = prepared.plan, prepared.config.regime, prepared.blueprint.num_stages
    room = prepared.room
    if room is None:

        def whole_stream(time_up: TimeUp) -> Iterator[Item | None]:
            return stream(plan, out_of_time=time_up, patience=patience, num_stages=num_stages)

        return AllAtOnce(whole_stream, is_up=out_of_time, position=position)

    def cell_stream(cell: Cell, time_up: TimeUp) -> Iterator[Item | None]:
        return lap_stream(
            plan,
            cell,
            epochs=regime.lap_epochs(cell.stage),
            last_lap=cell.lap == regime.laps - 1,
            stores=room.inputs == "cache" and cell.stage < num_stages - 1,
            out_of_time=time_up,
            patience=patience,
        )

    def stored(cell: Cell) -> Iterator[Item | None]:
        epochs = regime.lap_epochs(cell.stage)
        return store_stream(plan, cell, epochs=epochs, last_lap=cell.lap == regime.laps - 1)

    laps = Laps(num_stages, regime.laps, at_once=regime.name == "wavefront", room=room)
    return OneByOne(laps, cell_stream, stored=stored, is_up=out_of_time, position=position)


def _check_shares(config: Config, plan: StreamPlan) -> None:
    """Every replica needs a sample of every microbatch."""
    evaluated = {"validation": plan.num_validation, "test": plan.num_test}
    sizes = {part: pieces(count, plan.eval_microbatch_size) for part, count in evaluated.items()}
    batches = pieces(plan.num_train, plan.batch_size)
    sizes["training"] = [size for batch in set(batches) for size in pieces(batch, plan.microbatch_size)]
    for part, counts in sizes.items():
        if counts and min(counts) < config.replicas:
            raise InputError(
                f"replicas: expected at least a sample for each in every microbatch, got {config.replicas} replicas and"
                f" a {part} microbatch of {min(counts)}; use fewer replicas or another batch size"
            )


def _room(config: Config, blueprint: Blueprint, plan: StreamPlan) -> Room:
    num_samples = plan.num_train + plan.num_validation + plan.num_test
    leaving = [size - LABEL_BYTES for size in blueprint.sample_bytes[1:]]
    try:
        return choose_inputs(
            config.regime.inputs,
            # What replicas have stored apart could not be shuffled together.
            is_cacheable=not config.data.augment and config.replicas == 1,
            output_bytes=[num_samples * size for size in leaving] + [0],
            weight_bytes=[4 * count for count in blueprint.num_parameters],
            limit_bytes=config.regime.cache_bytes,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def about(prepared: Prepared) -> dict[str, Any]:
    """What weights have to say of the network and the data that they belong to."""
    return {
        "data": asdict(prepared.data.info),
        "block_names": prepared.blueprint.block_names,
        "cuts": prepared.blueprint.partition.cuts,
    }
