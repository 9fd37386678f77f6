"""`distblock verify`: whether a network trains as promised, shown on a few microbatches before hours are spent.

Faults of a network show late and quietly: a weight that no optimizer knows, a block that draws from a generator of its
own, a gradient that finds its way into the neighbouring stage. Each check here looks for one of them, on the given
settings, and says what it looked at; a fault names the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from distblock import local
from distblock.config import Config
from distblock.errors import DistblockError, InputError
from distblock.learning.blueprint import Build
from distblock.learning.checks import (
    Batch,
    Finding,
    gradients_stay,
    no_hidden_state,
    parameters_change,
    transport_cost_is_right,
)
from distblock.learning.host import HostSpec, explain
from distblock.learning.stage import arrays_sha256
from distblock.messages import Item
from distblock.metrics.observer import Silent
from distblock.preparation import Prepared, make_course, make_job, prepare
from distblock.runtime import driver

MICROBATCHES = 4
"""Training microbatches that every check looks at."""


def verify(
    config: Config, *, model: Build | None = None, dataset: Callable[..., Any] | None = None
) -> Iterator[Finding]:
    """Check a run's settings, its network first of all.

    Args:
        config: the settings.
        model, dataset: your own, instead of those that ``config`` names.

    Yields:
        A finding a check, as each is done. Those after the first are left out where the network cannot be built.
    """
    try:
        prepared = _shorten(config, model=model, dataset=dataset)
    except InputError as error:
        yield Finding(check="the network can be cut into stages", faults=(str(error),), shown="")
        return
    shapes = prepared.blueprint.state_shapes
    yield Finding(
        check="the network can be cut into stages",
        faults=(),
        shown=f"{len(shapes)} stages, {sum(prepared.blueprint.num_parameters):,} parameters, each in one block alone",
    )
    spec = _spec(prepared, model)
    batches = _batches(prepared)
    for check in (gradients_stay, parameters_change, no_hidden_state, transport_cost_is_right):
        try:
            yield check(spec, batches)
        except Exception as error:  # whatever a faulty network does, the other checks go on
            name = check.__name__.replace("_", " ")
            yield Finding(check=name, faults=(f"the check itself failed: {explain(error)}",), shown="")
    if config.regime.name != "asynchronous":
        yield _workers_agree(prepared, model=model, dataset=dataset)


def _shorten(config: Config, *, model: Build | None, dataset: Callable[..., Any] | None) -> Prepared:
    """The same run on a few microbatches: one epoch, two laps at most."""
    regime = config.regime.model_copy(
        update={
            "epochs": 1,
            "extra_epochs": 0,
            "laps": min(2, config.regime.laps),
            "max_time_s": None,
            "patience": None,
        }
    )
    config = config.model_copy(update={"regime": regime})
    whole = prepare(config, model=model, dataset=dataset)
    share = min(1.0, MICROBATCHES * config.data.batch_size / whole.plan.num_train)
    data = config.data.model_copy(update={"fraction": config.data.fraction * share})
    short = prepare(config.model_copy(update={"data": data}), model=model, dataset=dataset)
    plan = replace(
        short.plan,
        num_validation=min(short.plan.num_validation, short.plan.eval_microbatch_size),
        num_test=min(short.plan.num_test, short.plan.eval_microbatch_size),
    )
    return replace(short, plan=plan)


def _spec(prepared: Prepared, model: Build | None) -> HostSpec:
    spec = make_job(prepared, run="verify", model=model).hosts[0]
    config = spec.config.model_copy(
        update={"resources": spec.config.resources.model_copy(update={"gpus_per_worker": 0.0}), "precision": "fp32"}
    )
    return replace(spec, config=config, stages=range(prepared.blueprint.num_stages))


def _batches(prepared: Prepared) -> list[Batch]:
    count = min(prepared.plan.batch_size, prepared.plan.num_train)
    images, labels = map(torch.from_numpy, prepared.data.microbatch(Item.of_batch(0, count)))
    return [(Item.of_batch(index, count), images, labels) for index in range(MICROBATCHES)]


def _workers_agree(prepared: Prepared, *, model: Build | None, dataset: Callable[..., Any] | None) -> Finding:
    """A few steps by the plain loop, by one worker, and by as many as there are stages (three at least)."""
    check = "workers give the plain loop's weights, whatever their number"
    num_stages = prepared.blueprint.num_stages
    try:
        spec = replace(make_job(prepared, run="verify", model=model).hosts[0], stages=range(num_stages))
        state = local.execute(spec, prepared.data, make_course(prepared), Silent(), initial=prepared.initial)
        expected = _hashes(state)
        faults = []
        counts = sorted({1, min(2, num_stages), num_stages})
        for workers in counts:
            faults += _compare(prepared, workers, expected, model=model, dataset=dataset)
    except DistblockError as error:
        return Finding(check=check, faults=(str(error),), shown="")
    return Finding(check=check, faults=tuple(faults), shown=f"{', '.join(map(str, counts))} workers")


def _compare(
    prepared: Prepared, workers: int, expected: list[str], *, model: Build | None, dataset: Callable[..., Any] | None
) -> list[str]:
    resources = prepared.config.resources.model_copy(update={"workers": workers, "nodes": ()})
    config = prepared.config.model_copy(update={"resources": resources, "executor": "ray"})
    blueprint = replace(prepared.blueprint, hosts=_even(prepared.blueprint.num_stages, workers))
    changed = replace(prepared, config=config, blueprint=blueprint)
    job = make_job(changed, run="verify", model=model, dataset=dataset)
    got = _hashes(driver.execute(job, make_course(changed), Silent(), note=lambda _: None))
    return [
        f"stage {stage}: {workers} workers give other weights than the plain loop"
        for stage, (one, other) in enumerate(zip(got, expected, strict=True))
        if one != other
    ]


def _even(num_stages: int, workers: int) -> tuple[range, ...]:
    bounds = [round(worker * num_stages / workers) for worker in range(workers + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def _hashes(state: Mapping[int, Mapping[str, np.ndarray]]) -> list[str]:
    return [arrays_sha256(state[stage]) for stage in sorted(state)]
