"""Faults of a network that show late and quietly, looked for one by one on a few microbatches.

A weight that no optimizer knows, a block that draws from a generator of its own, a gradient that finds its way into
the neighbouring stage: each check looks for one of them, says what it looked at, and names the module.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors
from distblock.learning.host import HostSpec, build_stages, explain
from distblock.learning.network import detach, main_tensor
from distblock.messages import Item

Batch = tuple[Item, Tensor, Tensor]
"""A training microbatch: its place, images ``(N, C, H, W)`` and labels ``(N,)``."""


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


def gradients_stay(spec: HostSpec, batches: list[Batch]) -> Finding:
    """No stage's loss reaches a weight that is not its own; every weight it reaches is known to its optimizer."""
    stages = build_stages(spec, spec.stages)
    owners = {id(p): stage.index for stage in stages for p in stage.module.parameters()}
    names = {id(p): name.removeprefix("network.") for stage in stages for name, p in stage.module.named_parameters()}
    faults = []
    _, features, _ = batches[0]
    for stage in stages:
        stage.module.train()
        leaving, logits, cost = stage.loss_terms(features)
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
        features = detach(leaving)
    return Finding(
        check="no gradient crosses between stages, and no weight is in none",
        faults=tuple(dict.fromkeys(faults)),
        shown=f"{len(owners)} weights",
    )


def parameters_change(spec: HostSpec, batches: list[Batch]) -> Finding:
    """Every weight that asks for a gradient moves within a few steps."""
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
        shown=f"{len(batches)} steps",
    )


def no_hidden_state(spec: HostSpec, batches: list[Batch]) -> Finding:
    """The same step from the same state, with every global generator elsewhere: the module that differs first."""
    item, images, labels = batches[0]
    faults = []
    one, other = (build_stages(spec, spec.stages) for _ in range(2))
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


def transport_cost_is_right(spec: HostSpec, batches: list[Batch]) -> Finding:
    """Against the definition in float64, from the residuals that blocks hand out and from their plain forward."""
    item, images, labels = batches[0]
    faults, costs = [], []
    features: Features = images
    stages, twins = (build_stages(spec, spec.stages) for _ in range(2))
    for stage, twin in zip(stages, twins, strict=True):
        stage.module.train()
        expected, entering = 0.0, features
        has_residuals = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for block in twin.blocks:
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


def _scatter(seed: int) -> None:
    """Set every global generator to something else."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def _watched(stage: Any) -> Iterator[list[tuple[str, Any]]]:
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


def _equal(one: Features, other: Features) -> bool:
    pairs = zip(named_tensors(one), named_tensors(other), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)
