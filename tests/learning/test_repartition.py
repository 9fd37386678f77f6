"""A checkpoint's stages dealt out to other stages, by hand: three blocks, cut in two ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distblock.config import make_config
from distblock.learning.blueprint import Problem, draw_blueprint
from distblock.learning.host import HostSpec, build_stages
from distblock.learning.repartition import repartition
from distblock.learning.stage import Stage

PROBLEM = Problem(in_channels=1, image_size=8, num_classes=10)


def stages(cuts: list[int]) -> tuple[list[Stage], Any]:
    config = make_config({"model": {"cuts": cuts}, "executor": "local"})
    blueprint = draw_blueprint(config, PROBLEM)
    spec = HostSpec(
        run="run",
        config=config,
        problem=PROBLEM,
        blueprint=blueprint,
        stages=range(blueprint.num_stages),
        steps_per_epoch=1,
        inputs=None,
        build=None,
    )
    return build_stages(spec, spec.stages), blueprint


def trained_states(cuts: list[int]) -> dict[int, dict[str, np.ndarray]]:
    """As if trained: every weight has a momentum of its own, and each stage has its counters."""
    states = {}
    for stage in stages(cuts)[0]:
        state = {name: tensor.numpy().copy() for name, tensor in stage.training_state().items()}
        state |= {
            f"optimizer.momentum_buffer/{name}": parameter.detach().numpy() * 2 + stage.index
            for name, parameter in stage.module.named_parameters()
        }
        state["counters"] = np.array([0, 10 + stage.index, 10, 9])
        states[stage.index] = state
    return states


@pytest.mark.parametrize(
    ("before", "now", "renewed", "counters_of"),
    [
        ([1, 2], [2], [], [1, 2]),  # the new stage 0 ends where stage 1 ended
        ([2], [1], [0], [0, 1]),  # block 0 was inside of stage 0: nothing ended there
        ([1], [1, 2], [1], [0, 1, 1]),
        ([1, 2], [1, 2], [], [0, 1, 2]),
    ],
)
def test_weights_go_with_their_blocks(before: list[int], now: list[int], renewed: list[int], counters_of: list[int]):
    states = trained_states(before)
    new_stages, blueprint = stages(now)
    dealt, new_classifiers = repartition(states, cuts=tuple(before), blueprint=blueprint)
    assert new_classifiers == renewed
    whole = {key: array for state in states.values() for key, array in state.items() if "/network." in key}
    for stage in new_stages:
        own = dealt[stage.index]
        expected = [name for name, _ in stage.module.named_parameters() if name.startswith("network.")]
        assert expected
        for name in expected:
            np.testing.assert_array_equal(own[f"weight/{name}"], whole[f"weight/{name}"])
            np.testing.assert_array_equal(
                own[f"optimizer.momentum_buffer/{name}"], whole[f"optimizer.momentum_buffer/{name}"]
            )
        has_classifier = any(key.startswith("weight/classifier.") for key in own)
        assert has_classifier == (stage.index not in renewed)
        np.testing.assert_array_equal(own["counters"], states[counters_of[stage.index]]["counters"])
    assert sum("weight/network." in key for own in dealt.values() for key in own) == sum(
        key.startswith("weight/") for key in whole
    )


def test_a_stage_takes_it_up():
    import torch

    states = trained_states([2])
    new_stages, blueprint = stages([1])
    dealt, _ = repartition(states, cuts=(2,), blueprint=blueprint)
    for stage in new_stages:
        stage.load_training_state({name: torch.from_numpy(array.copy()) for name, array in dealt[stage.index].items()})
        buffers = {name: stage.optimizer.state.get(p, {}) for name, p in stage.module.named_parameters()}
        for name, values in buffers.items():
            # A new classifier begins without momentum.
            is_new = stage.index == 0 and name.startswith("classifier.")
            assert ("momentum_buffer" in values) == (not is_new)
    assert [stage.updates for stage in new_stages] == [10, 11]
