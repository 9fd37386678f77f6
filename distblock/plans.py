"""``distblock plan``, and ``--model.stages auto``: the blocks are profiled here, and the best layout is searched."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from distblock.config import Config, dump_config, make_config
from distblock.data.dataset import DataSet
from distblock.data.opening import open_data
from distblock.errors import InputError, RunFailedError
from distblock.learning.blueprint import Build, Problem
from distblock.learning.partition import balance
from distblock.planning.costs import Costs
from distblock.planning.forecast import Telling, forecast, forecast_sentence, forecast_table
from distblock.planning.layout import Plan, Seat
from distblock.planning.planner import Planner, quickest
from distblock.planning.profile import Profile, profile
from distblock.planning.request import Request, num_workers, read_request
from distblock.planning.settings import apply
from distblock.planning.surroundings import look_around
from distblock.planning.tables import alternatives_table, explain, plan_table, profile_table
from distblock.planning.trials import Trials
from distblock.runtime.group import Group
from distblock.schedule.parcels import parcel_size

NEIGHBOURS = 3
"""Partitions that are looked at for each candidate that is wanted."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan and what it was chosen from.

    Attributes:
        plan: the best one.
        others: by what they are.
        profile: of the network.
        planner: which may be asked for more.
    """

    plan: Plan
    others: dict[str, Plan]
    profile: Profile
    planner: Planner


def main(arguments: Sequence[str], console: Console) -> None:
    """``distblock plan``.

    Raises:
        InputError: an option or a setting cannot be, or nothing fits.
    """
    request, to = read_request(arguments)
    found = search(request)
    console.print(profile_table(found.profile))
    console.print(plan_table(found.plan, found.profile))
    console.print(alternatives_table(found.plan, found.others))
    for line in explain(found.plan, found.others):
        console.print(line, soft_wrap=True)
    if request.telling is not None:
        telling = _as_planned(request.telling, found.plan, request.config)
        told = forecast(found.plan, found.planner.costs.around, telling)
        console.print(forecast_sentence(told, telling), soft_wrap=True)
        console.print(forecast_table(told))
    planned = apply(found.plan, request.config)
    if to is None:
        replicas = [] if found.plan.replicas == request.config.replicas else ["--replicas", str(found.plan.replicas)]
        console.print(f"distblock train ... {' '.join([*_flags(planned), *replicas])}", soft_wrap=True)
    else:
        Path(to).write_text(dump_config(planned))
        console.print(f"distblock train --config {to}", soft_wrap=True)


def search(request: Request, *, model: Build | None = None, dataset: Callable[..., Any] | None = None) -> Found:
    """Profile the network on this machine and find its best layout.

    Raises:
        InputError: something that was given cannot be used, or nothing fits.
    """
    config = request.config
    _check(config)
    data = open_data(config.data, seed=config.seed, dataset=dataset)
    seats = request.seats
    cores = request.cores or len(os.sched_getaffinity(0))
    # Workers share cores' memory bandwidth, but not GPUs.
    together = 1 if config.resources.gpus_per_worker else max(1, min(len(seats), cores))
    problem = Problem(
        in_channels=data.info.channels, image_size=data.info.image_size, num_classes=data.info.num_classes
    )
    measured = profile(
        config, problem, build=model, codecs=tuple(dict.fromkeys(("fp32", *request.codecs))), processes=together
    )
    found, failed = [], []
    for own in _by_replicas(request):
        try:
            found.append(_tried(choose(own, measured, data), own, problem, model))
        except (InputError, RunFailedError) as error:
            failed.append(error)
    if not found:
        raise failed[0]
    return _quickest_of(found)


def _by_replicas(request: Request) -> list[Request]:
    """The same for each number of replicas that there may be.

    Raises:
        InputError: the settings allow none of them.
    """
    if not request.replicas:
        return [request]
    found, refused = [], []
    for count in request.replicas:
        seats = request.seats[: len(request.seats) // count]
        try:
            values = {**request.config.model_dump(mode="json", exclude_unset=True), "replicas": count}
            found += [replace(request, config=make_config(values), seats=seats)] if seats else []
        except InputError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def _quickest_of(found: Sequence[Found]) -> Found:
    """With those of the others beside it."""
    best = min(found, key=lambda each: each.plan.pace_s)
    others = {
        f"{name}, {each.plan.replicas} replica{'s' if each.plan.replicas > 1 else ''}": other
        for each in found
        if each is not best
        for name, other in {_workers(len(each.plan.pieces)): each.plan, **each.others}.items()
    }
    return replace(best, others={**best.others, **others})


def choose(request: Request, measured: Profile, data: DataSet) -> Found:
    """The best layout for a network that has been profiled."""
    seats = request.seats
    step_s = sum(block.first_s + block.classifier_s for block in measured.blocks) / max(1, len(seats))
    around = look_around(
        request.config, data, step_s=step_s, cores=request.cores, link_bytes_per_s=request.link_bytes_per_s
    )
    planner = Planner(Costs(measured, around, codecs=request.codecs, replicas=request.config.replicas))
    by_count = planner.by_count(seats)
    plan = quickest(by_count.values())
    others = {_workers(count): other for count, other in by_count.items() if other.cuts != plan.cuts}
    number = len(plan.pieces)
    own = [piece.seat for piece in plan.pieces]
    equal = balance([1] * planner.costs.num_blocks, number)
    if equal != plan.cuts:
        others["as many blocks each"] = planner.of_cuts(equal, own)
    return Found(plan=plan, others=others, profile=measured, planner=planner)


def _tried(found: Found, request: Request, problem: Problem, build: Build | None) -> Found:
    """The layouts that look best, as they are when they are tried; the quickest that fits is the plan.

    Raises:
        InputError: none of them fits.
        RunFailedError: none of them could be tried.
    """
    layouts = {_workers(len(found.plan.pieces)): found.plan, **found.others}
    has_room = all(math.isinf(seat.memory_bytes) for seat in request.seats)
    # What was tried cannot be compared with sums.
    if len(layouts) == 1 and has_room and not request.replicas:
        return found
    trials = Trials(found.planner, request.config, problem, build=build, peers=Group)
    plan = trials.quickest(layouts).plan
    tried = {name: each.plan for name, each in trials.done.items()}
    others = {_named(name, trials): other for name, other in {**layouts, **tried}.items() if other.cuts != plan.cuts}
    return replace(found, plan=plan, others=others)


def _named(name: str, trials: Trials) -> str:
    """Sums and trials are not to be compared without being told apart."""
    if name in trials.failed:
        return f"{name}, failed when it was tried"
    if name not in trials.done:
        return f"{name}, not tried"
    return name if trials.done[name].plan.fits else f"{name}, too large"


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def planned(
    config: Config,
    *,
    model: Build | None = None,
    dataset: Callable[..., Any] | None = None,
    note: Callable[[str], object],
) -> Config:
    """The settings with the best plan in place of ``model.stages: auto``.

    Args:
        config: the settings.
        model, dataset: the user's own.
        note: is told what was chosen, and why.

    Raises:
        InputError: something that was given cannot be used, or nothing fits.
    """
    found = search(_here(config), model=model, dataset=dataset)
    for line in explain(found.plan, found.others):
        note(line)
    if config.address is not None:
        note(f"It is for workers as quick as this machine, on one node: the cluster {config.address} was not measured.")
    plan = apply(found.plan, config)
    # Its lines are this machine's: which codec an edge has is settled where the workers are.
    return plan.model_copy(update={"channel": config.channel}) if config.channel.codec == "auto" else plan


def candidates(config: Config, count: int) -> dict[tuple[int, ...], Plan]:
    """Partitions with a high planned throughput: the plan first, then the quickest as they look, of the best one for
    each number of workers and of those around them, a cut moved by a block at a time.

    Args:
        config: the settings; ``resources.workers`` says how many workers there may be.
        count: how many at most.

    Returns:
        Plans by their cuts.

    Raises:
        InputError: something that was given cannot be used, or nothing fits.
    """
    found = search(_here(config))
    planner = found.planner
    # As they look, all of them: what was tried cannot be compared with what was not.
    plans = {
        plan.cuts: planner.of_cuts(plan.cuts, [piece.seat for piece in plan.pieces])
        for plan in (found.plan, *found.others.values())
    }
    left = sorted(plans.values(), key=lambda plan: plan.pace_s)
    while left and len(plans) < NEIGHBOURS * count:
        around = left.pop(0)
        for cuts in _moved(around.cuts, planner.costs.num_blocks):
            if cuts not in plans:
                plans[cuts] = planner.of_cuts(cuts, [piece.seat for piece in around.pieces])
                left.append(plans[cuts])
    ranked = sorted(plans.values(), key=lambda plan: (plan.cuts != found.plan.cuts, plan.pace_s))
    return {plan.cuts: plan for plan in ranked[:count]}


def _here(config: Config) -> Request:
    """Workers on this machine."""
    return Request(config=config, seats=(Seat(),) * num_workers(config), codecs=config.channel.offered)


def _moved(cuts: tuple[int, ...], num_blocks: int) -> Iterator[tuple[int, ...]]:
    """One cut a block earlier or later; no stage becomes empty."""
    bounds = (0, *cuts, num_blocks)
    for place in range(len(cuts)):
        for cut in (cuts[place] - 1, cuts[place] + 1):
            if bounds[place] < cut < bounds[place + 2]:
                yield (*cuts[:place], cut, *cuts[place + 1 :])


def as_before(config: Config, before: Config) -> Config:
    """A run that goes on keeps the plan that it began with."""
    model = {"stages": before.model.stages, "cuts": before.model.cuts}
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def _check(config: Config) -> None:
    if config.regime.name not in ("parallel", "asynchronous"):
        raise InputError(
            f"plan: expected the parallel or the asynchronous regime, in which all stages compute at once, got"
            f" {config.regime.name}"
        )
    if config.model.cuts is not None:
        raise InputError("plan: expected no model.cuts, which are what is planned, got some; leave them out")


def _as_planned(telling: Telling, plan: Plan, config: Config) -> Telling:
    """With parcels as they would be."""
    size = parcel_size(config, ())
    size.tell(0, max(piece.compute_s for piece in plan.pieces))
    return replace(telling, per_call=size.count)


def _flags(config: Config) -> list[str]:
    cuts = ["--model.cuts", *map(str, config.model.cuts)] if config.model.cuts else ["--model.stages", "1"]
    codecs = [f"{edge}={codec}" for edge, codec in config.channel.edge_codecs.items()]
    workers = ["--resources.workers", str(config.resources.workers)]
    if config.resources.nodes:
        workers += ["--resources.nodes", *config.resources.nodes]
        workers += ["--address", "HOST:PORT"] if config.address is None else []
    return [*cuts, *workers, *(["--channel.edge-codecs", *codecs] if codecs else [])]
