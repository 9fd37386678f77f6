"""A checkpoint's stages, dealt out to stages that are cut elsewhere.

Weights, gradients and the optimizer's state belong to parameters, and parameters to blocks: they go where their block
goes. An auxiliary classifier belongs to the block whose output it sees: a stage that ends where none ended begins with
a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from distblock.learning.blueprint import Blueprint

Arrays = Mapping[str, np.ndarray]


def repartition(
    states: Mapping[int, Arrays], *, cuts: tuple[int, ...], blueprint: Blueprint
) -> tuple[dict[int, dict[str, np.ndarray]], list[int]]:
    """Deal out training states.

    Args:
        states: of each earlier stage, see `distblock.learning.stage.Stage.training_state`.
        cuts: where the network was cut.
        blueprint: where it is cut now.

    Returns:
        The training state of each stage, and the stages that begin with a new auxiliary classifier.
    """
    num_blocks = len(blueprint.block_names)
    earlier = [range(start, stop) for start, stop in pairwise([0, *cuts, num_blocks])]
    of_network = {key: array for state in states.values() for key, array in state.items() if _is_of(key, "network")}
    dealt, renewed = {}, []
    for stage, blocks in enumerate(blueprint.partition.stages):
        names = {name for name in blueprint.state_shapes[stage] if name.startswith("network.")}
        own = {key: array for key, array in of_network.items() if key.partition("/")[2] in names}
        whose = next(index for index, each in enumerate(earlier) if blocks[-1] in each)
        own |= {key: states[whose][key] for key in ("counters", "scalars")}
        if earlier[whose][-1] == blocks[-1]:
            own |= {key: array for key, array in states[whose].items() if _is_of(key, "classifier")}
        else:
            renewed.append(stage)
        dealt[stage] = own
    return dealt, renewed


def _is_of(key: str, whose: str) -> bool:
    return key.partition("/")[2].startswith(f"{whose}.")
