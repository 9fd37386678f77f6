"""`distblock verify`: whether a network trains as promised, shown on a few microbatches before hours are spent.

Faults of a network show late and quietly: a weight that no optimizer knows, a block that draws from a generator of its
own, a gradient that finds its way into the neighbouring stage. Each check here looks for one of them, on the given
settings, and says what it looked at; a fault names the module.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distblock import local
from distblock.codecs.cast import Features, named_tensors
from distblock.config import Config
from distblock.errors import DistblockError, InputError
from distblock.learning.blueprint import Build
from distblock.learning.host import HostSpec, build_stages, explain
from distblock.learning.network import main_tensor
from distblock.learning.stage import Stage, weights_sha256
from distblock.messages import Item
from distblock.metrics.accounting import Account
from distblock.runtime import driver
from distblock.trainer import Prepared, make_course, make_job, prepare

MICROBATCHES = 4
"""Training microbatches that every check looks at."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check came to.

    Attributes:
        check: what was looked at.
        faults: each names the module and the reason; none: it holds.
        shown: what was seen, in a few words.
    """

    check: str
    faults: tuple[str, ...]
    shown: str


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
        prepared = _shorten(prepare(config, model=model, dataset=dataset))
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
    for check in (_gradients_stay, _parameters_change, _no_hidden_state, _transport_cost):
        yield check(spec, batches)
    if config.regime.name != "asynchronous":
        yield _workers_agree(prepared, model=model, dataset=dataset)


def _shorten(prepared: Prepared) -> Prepared:
    """The same run on a few microbatches: one epoch, two laps at most."""
    regime = prepared.config.regime
    short = regime.model_copy(
        update={"epochs": 1, "extra_epochs": 0, "laps": min(2, regime.laps), "max_time_s": None, "patience": None}
    )
    config = prepared.config.model_copy(update={"regime": short})
    plan = prepared.plan
    few = MICROBATCHES * plan.batch_size
    plan = replace(
        plan,
        epochs=1,
        num_train=min(plan.num_train, few),
        num_validation=min(plan.num_validation, plan.eval_microbatch_size),
        num_test=min(plan.num_test, plan.eval_microbatch_size),
    )
    return replace(prepared, config=config, plan=plan)


def _spec(prepared: Prepared, model: Build | None) -> HostSpec:
    spec = make_job(prepared, run="verify", model=model).hosts[0]
    config = spec.config.model_copy(
        update={"resources": spec.config.resources.model_copy(update={"gpus_per_worker": 0.0}), "precision": "fp32"}
    )
    return replace(spec, config=config, stages=range(prepared.blueprint.num_stages))


def _batches(prepared: Prepared) -> list[tuple[Item, Tensor, Tensor]]:
    item = Item(
        number=0,
        purpose="train",
        part="train",
        epoch=0,
        index=0,
        first_sample=0,
        num_samples=min(prepared.plan.batch_size, prepared.plan.num_train),
        batch_samples=min(prepared.plan.batch_size, prepared.plan.num_train),
        closes_batch=True,
        closes_pass=False,
    )
    batches = []
    for index in range(MICROBATCHES):
        images, labels = prepared.data.microbatch(item)
        batches.append((replace(item, number=index, index=index), torch.from_numpy(images), torch.from_numpy(labels)))
    return batches


def _gradients_stay(spec: HostSpec, batches: list[tuple[Item, Tensor, Tensor]]) -> Finding:
    """No stage's loss reaches a weight that is not its own; every weight it reaches is known to its optimizer."""
    stages = build_stages(spec, spec.stages)
    owners = {id(p): stage.index for stage in stages for p in stage.module.parameters()}
    names = {id(p): name for stage in stages for name, p in stage.module.named_parameters()}
    faults = []
    _, features, _ = batches[0]
    for stage in stages:
        stage.module.train()
        leaving, logits, cost = stage._forward(features)
        total = logits.sum() if cost is None else logits.sum() + cost
        for parameter in _reached(total):
            owner = owners.get(id(parameter))
            if owner is None:
                faults.append(
                    f"stage {stage.index}: its loss reaches a weight of shape {tuple(parameter.shape)} that lies in no"
                    " stage, so nothing trains it: is a module kept in a plain list, or outside of the blocks?"
                )
            elif owner != stage.index:
                faults.append(
                    f"stage {stage.index}: its loss reaches {names[id(parameter)]} of stage {owner}: a block hands on"
                    " something that is not detached"
                )
        features = _detached(leaving)
    return Finding(
        check="no gradient crosses between stages, and no weight is in none",
        faults=tuple(dict.fromkeys(faults)),
        shown=f"{len(owners)} weights",
    )


def _parameters_change(spec: HostSpec, batches: list[tuple[Item, Tensor, Tensor]]) -> Finding:
    stages = build_stages(spec, spec.stages)
    before = [{n: p.detach().clone() for n, p in stage.module.named_parameters()} for stage in stages]
    faults = []
    try:
        for item, features, labels in batches:
            passed: Features = features
            for stage in stages:
                passed, _ = stage.train(item, passed, labels)
    except Exception as error:
        faults.append(f"training fails: {explain(error)}")
    else:
        for stage, old in zip(stages, before, strict=True):
            for name, parameter in stage.module.named_parameters():
                if parameter.requires_grad and torch.equal(parameter, old[name]):
                    faults.append(f"stage {stage.index}: {name} does not change: does the forward pass use it?")
    return Finding(
        check="every trainable weight changes, and no block writes to its input",
        faults=tuple(faults),
        shown=f"{MICROBATCHES} steps",
    )


def _no_hidden_state(spec: HostSpec, batches: list[tuple[Item, Tensor, Tensor]]) -> Finding:
    """The same step from the same state, with every global generator elsewhere: the module that differs first."""
    item, images, labels = batches[0]
    faults = []
    one, other = ([_prepared_stage(stage) for stage in build_stages(spec, spec.stages)] for _ in range(2))
    features: Features = images
    for first, second in zip(one, other, strict=True):
        try:
            outputs = []
            for seed, stage in ((1, first), (2, second)):
                _scatter(seed)
                with _watched(stage) as seen:
                    leaving, _ = stage.train(item, features, labels)
                outputs.append((leaving, seen))
        except Exception as error:
            faults.append(f"stage {first.index}: {explain(error)}")
            break
        (leaving, seen), (again, seen_again) = outputs
        if not _equal(leaving, again):
            faults.append(
                f"stage {first.index}: {_first_difference(seen, seen_again)} gives another output for the same input,"
                " weights and seed: it keeps a random state or a counter of its own (draw with torch's default"
                " generator instead)"
            )
        features = leaving
    return Finding(
        check="what a step gives depends on input, weights and seed alone",
        faults=tuple(faults),
        shown="two processes' worth of global generators",
    )


def _transport_cost(spec: HostSpec, batches: list[tuple[Item, Tensor, Tensor]]) -> Finding:
    """Against the definition in float64, from the residuals that blocks hand out and from their plain forward."""
    item, images, labels = batches[0]
    faults, costs = [], []
    features: Features = images
    for stage in build_stages(spec, spec.stages):
        stage.module.train()
        expected, entering = 0.0, features
        has_residuals = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for block in build_stages(spec, range(stage.index, stage.index + 1))[0].blocks:
                entering, residuals = block.run(entering)
                has_residuals = has_residuals or bool(residuals)
                expected += sum(residual.double().square().mean().item() for residual in residuals)
        before, after = main_tensor(features), main_tensor(entering)
        if not has_residuals and before.shape == after.shape:
            expected = (after.double() - before.double()).square().mean().item()
        leaving, measures = stage.train(item, features, labels)
        cost = measures.transport_cost_sum / item.num_samples
        costs.append(cost)
        draws = any(
            "dropout" in type(m).__name__.lower() or "stochastic" in type(m).__name__.lower()
            for m in stage.module.modules()
        )
        if not draws and not math.isclose(cost, expected, rel_tol=1e-4, abs_tol=1e-9):
            faults.append(f"stage {stage.index}: transport cost {cost:.6g}, but by the definition {expected:.6g}")
        features = leaving
    shown = ", ".join(f"{cost:.3g}" for cost in costs[:6]) + (", ..." if len(costs) > 6 else "")
    return Finding(check="the transport cost is that of its definition", faults=tuple(faults), shown=shown)


def _workers_agree(prepared: Prepared, *, model: Build | None, dataset: Callable[..., Any] | None) -> Finding:
    """A few steps by the plain loop, by one worker, and by as many as there are stages (three at least)."""
    check = "workers give the plain loop's weights, whatever their number"
    num_stages = prepared.blueprint.num_stages
    try:
        spec = replace(make_job(prepared, run="verify", model=model).hosts[0], stages=range(num_stages))
        account = Account(num_stages=num_stages)
        state = local.execute(spec, prepared.data, make_course(prepared), account, initial=prepared.initial)
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
    resources = prepared.config.resources.model_copy(update={"workers": workers})
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


class Silent:
    """An observer that nobody looks at."""

    def begin(self) -> None: ...  # noqa: D102
    def record(self, report: Any) -> None: ...  # noqa: D102
    def record_departure(self, departure: Any, node: str) -> None: ...  # noqa: D102
    def record_backpressure(self, edge: int, seconds: float) -> None: ...  # noqa: D102
    def record_drop(self, edge: int) -> None: ...  # noqa: D102
    def set_in_flight(self, edge: int, count: int, num_bytes: int) -> None: ...  # noqa: D102


def _even(num_stages: int, workers: int) -> tuple[range, ...]:
    bounds = [round(worker * num_stages / workers) for worker in range(workers + 1)]
    return tuple(range(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False))


def _hashes(state: Mapping[int, Mapping[str, np.ndarray]]) -> list[str]:
    return [
        weights_sha256({name: torch.from_numpy(np.array(array)) for name, array in state[stage].items()})
        for stage in sorted(state)
    ]


def _prepared_stage(stage: Stage) -> Stage:
    stage.module.train()
    return stage


def _scatter(seed: int) -> None:
    """Set every global generator to something else."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def _watched(stage: Stage) -> Iterator[list[tuple[str, Any]]]:
    """Outputs of all modules of a stage in order of their calls."""
    seen: list[tuple[str, Any]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen.append((name, output.detach().clone() if isinstance(output, Tensor) else output))

        return keep

    handles = [m.register_forward_hook(watch(name)) for name, m in stage.module.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(seen: list[tuple[str, Any]], again: list[tuple[str, Any]]) -> str:
    for (name, one), (_, other) in zip(seen, again, strict=False):
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not torch.equal(one, other):
            return name.removeprefix("network.")
    return "its forward pass"


def _reached(total: Tensor) -> Iterator[Tensor]:
    """Leaves of the graph that gradients flow to."""
    seen, stack = set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        stack += [following for following, _ in node.next_functions]


def _detached(features: Features) -> Features:
    if isinstance(features, Tensor):
        return features.detach()
    if isinstance(features, dict):
        return {key: tensor.detach() for key, tensor in features.items()}
    return tuple(tensor.detach() for tensor in features)


def _equal(one: Features, other: Features) -> bool:
    pairs = zip(named_tensors(one), named_tensors(other), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)
