"""Weights of an earlier run, dealt out to the stages of this one.

Names are the network's own, so it does not matter how the earlier run was cut. An auxiliary classifier is taken over
where the same stage has one of the same shape; otherwise it begins anew, as it must with new cuts. Where classes are
known by name on both sides, each keeps its row of the classifier's last layer, and a new one begins with zeros: at
first nothing speaks for it or against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distblock.errors import InputError
from distblock.learning.blueprint import Blueprint

LAST_LAYER = 2
"""Tensors at the end of every auxiliary classifier that have a row a class: weight and bias of its linear layer."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names of classes, in the order of a classifier's rows: of the earlier run, and of the one to begin."""

    before: Sequence[str]
    now: Sequence[str]

    def regrown(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the classes that there are now, from those there were."""
        grown = np.zeros((len(self.now), *rows.shape[1:]), dtype=rows.dtype)
        for place, name in enumerate(self.now):
            if name in self.before:
                grown[place] = rows[self.before.index(name)]
        return grown


def initial_state(
    weights: Mapping[str, np.ndarray], blueprint: Blueprint, *, classes: Classes | None = None
) -> dict[int, dict[str, np.ndarray]]:
    """Deal out weights.

    Args:
        weights: by name: ``network.<name>`` and ``classifier.<stage>.<name>``.
        blueprint: the run that is to begin.
        classes: where they are known by name; None: a row is a row.

    Returns:
        By stage, then by the stage's own names.

    Raises:
        InputError: a weight of the network is missing or has another shape; a weight belongs to no stage.
    """
    known = {name for state in blueprint.state_shapes for name in state}
    foreign = sorted(name for name in weights if name.startswith("network.") and name not in known)
    if foreign:
        raise InputError(
            f"model.init_from: {_own(foreign[0])} is not in this network ({len(foreign)} such weights); expected"
            " weights of the same network; check model.name"
        )
    return {stage: _of_stage(stage, shapes, weights, classes) for stage, shapes in enumerate(blueprint.state_shapes)}


def _of_stage(
    stage: int, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray], classes: Classes | None
) -> dict[str, np.ndarray]:
    network = {name: shape for name, shape in shapes.items() if name.startswith("network.")}
    for name, shape in network.items():
        if name not in weights:
            raise InputError(f"model.init_from: no weight {_own(name)} of stage {stage}; expected the same network")
        if weights[name].shape != shape:
            raise InputError(
                f"model.init_from: {_own(name)} of stage {stage}: expected shape {shape}, got {weights[name].shape};"
                " check model.name, model.width and the data's channels"
            )
    state = {name: weights[name] for name in network}
    classifier = {
        name: f"classifier.{stage}.{name.removeprefix('classifier.')}" for name in shapes if name not in network
    }
    found = {name: weights[given] for name, given in classifier.items() if given in weights}
    if classes is not None and found.keys() == classifier.keys():
        for name in list(classifier)[-LAST_LAYER:]:
            found[name] = classes.regrown(found[name])
    if {name: array.shape for name, array in found.items()} == {name: shapes[name] for name in classifier}:
        state |= found
    return state


def _own(name: str) -> str:
    return name.removeprefix("network.")
