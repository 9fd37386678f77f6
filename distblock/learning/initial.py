"""Weights of an earlier run, dealt out to the stages of this one.

Names are the network's own, so it does not matter how the earlier run was cut. An auxiliary classifier is taken over
where the same stage has one of the same shape; otherwise it begins anew, as it must with new classes or new cuts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distblock.errors import InputError
from distblock.learning.blueprint import Blueprint


def initial_state(weights: Mapping[str, np.ndarray], blueprint: Blueprint) -> dict[int, dict[str, np.ndarray]]:
    """Deal out weights.

    Args:
        weights: by name: ``network.<name>`` and ``classifier.<stage>.<name>``.
        blueprint: the run that is to begin.

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
    return {stage: _of_stage(stage, shapes, weights) for stage, shapes in enumerate(blueprint.state_shapes)}


def _of_stage(
    stage: int, shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]
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
    if all(given in weights and weights[given].shape == shapes[name] for name, given in classifier.items()):
        state |= {name: weights[given] for name, given in classifier.items()}
    return state


def _own(name: str) -> str:
    return name.removeprefix("network.")
