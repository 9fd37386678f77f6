"""Cuts, costs and the trial run."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.learning.network import Block
from distblock.learning.partition import (
    OPERATIONS_PER_ELEMENT,
    Partition,
    balance,
    check_shapes,
    count_costs,
    make_partition,
)


def blocks_of(*modules: nn.Module) -> list[Block]:
    return [Block(name=f"blocks.{m}", modules=((f"blocks.{m}", module),)) for m, module in enumerate(modules)]


def test_stages_of_a_partition():
    partition = Partition(cuts=(1, 4), num_blocks=6)
    assert partition.num_stages == 3
    assert partition.stages == (range(0, 1), range(1, 4), range(4, 6))
    assert [partition.stage_of(block) for block in range(6)] == [0, 1, 1, 1, 2, 2]


def test_one_block_a_stage_by_default():
    assert make_partition(ModelConfig(), [5, 1, 1]).stages == (range(0, 1), range(1, 2), range(2, 3))


def test_explicit_cuts():
    assert make_partition(ModelConfig(cuts=(1, 8)), [1] * 15).stages == (range(0, 1), range(1, 8), range(8, 15))


def test_no_cuts_are_one_stage():
    assert make_partition(ModelConfig(cuts=()), [1] * 3).stages == (range(0, 3),)
    assert make_partition(ModelConfig(stages=1), [1] * 3).stages == (range(0, 3),)


def test_a_number_of_stages_is_balanced_by_cost():
    assert make_partition(ModelConfig(stages=2), [1, 1, 1, 3]).cuts == (3,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(stages=4), r"got 4 stages for a network of 3 blocks; set --model\.stages 3"),
        (ModelConfig(cuts=(2, 1)), r"ascending numbers, got \[2, 1\]"),
        (ModelConfig(cuts=(1, 1)), r"ascending numbers, got \[1, 1\]"),
        (ModelConfig(cuts=(1, 3)), r"from 1 to 2, since the network has 3 blocks, got 3"),
    ],
)
def test_partitions_that_do_not_fit(config: ModelConfig, message: str):
    with pytest.raises(InputError, match=message):
        make_partition(config, [1, 1, 1])


def largest(costs: list[int], cuts: tuple[int, ...]) -> int:
    return max(sum(costs[start:stop]) for start, stop in pairwise((0, *cuts, len(costs))))


def test_balance_against_all_partitions():
    """Oracle: of all cuts, in lexicographic order, the first with the smallest largest cost."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        count = 1 + trial % 9
        costs = torch.randint(1, 8 if trial % 2 else 3, (count,), generator=generator).tolist()
        for num_parts in range(1, count + 1):
            candidates = combinations(range(1, count), num_parts - 1)
            assert balance(costs, num_parts) == min(candidates, key=lambda cuts, costs=costs: largest(costs, cuts))


def test_costs_by_hand():
    """Oracle: two operations a product; a convolution takes N * C_out * H * W * C_in * 9 products. Beside them, what is
    written: flattening writes nothing."""
    blocks = blocks_of(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    convolution, linear = 2 * (2 * 5 * 4 * 4 * 3 * 9), 2 * (2 * 80 * 7)
    written = [OPERATIONS_PER_ELEMENT * 2 * 5 * 4 * 4] * 2 + [0, OPERATIONS_PER_ELEMENT * 2 * 7]
    expected = [convolution + written[0], written[1], 1, linear + written[3]]
    assert count_costs(blocks, torch.zeros(2, 3, 8, 8)) == expected


class Frozen(nn.Linear):
    @torch.inference_mode()
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


def test_costs_in_inference_mode_are_the_same():
    example = torch.zeros(2, 80)
    assert count_costs(blocks_of(Frozen(80, 7)), example) == count_costs(blocks_of(nn.Linear(80, 7)), example)


def test_a_trial_returns_each_output_and_leaves_no_trace():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    module[1].train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    blocks = blocks_of(module, nn.Dropout(0.5))
    example = torch.randn(2, 3, 8, 8)
    state = torch.random.get_rng_state()
    outputs = check_shapes(blocks, example)
    count_costs(blocks, example)
    assert [tuple(output.shape) for output in outputs if isinstance(output, torch.Tensor)] == [(2, 4, 6, 6)] * 2
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert [each.training for each in module.modules()] == [False, False, True]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


class Raising(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("several\nlines")


class Reshaping(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.reshape(1, -1)


class Adding(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features += 1
        return features


class Listing(nn.Module):
    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [features]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.ReLU(), nn.Conv2d(32, 64, 3)),
            r"expects C=32 input channels \(Conv2d\(32, 64, .*\)\), received \(2, 16, 8, 8\): RuntimeError: ",
        ),
        (nn.Linear(10, 3), r"expects a last dimension of 10 \(Linear\(.*\)\), received \(2, 16, 8, 8\): "),
        (nn.BatchNorm2d(8), r"expects C=8 channels \(BatchNorm2d\(8, .*\)\), received \(2, 16, 8, 8\): "),
        (Raising(), r"failed in Raising\(\), received \(2, 16, 8, 8\): RuntimeError: several lines$"),
        (Reshaping(), r"expected 2 samples .* got \(1, 2048\)"),
        (Adding(), r"expected not to write to its input"),
        (Listing(), r"expected a tensor, or a tuple or dictionary of tensors, .* got list"),
    ],
)
def test_a_misfit_is_named(module: nn.Module, message: str):
    blocks = blocks_of(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), module)
    example = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InputError, match=rf"^block 2 \(blocks\.2\): .*{message}"):
        check_shapes(blocks, example)
    with pytest.raises(InputError, match=rf"^stage 1, block 2 \(blocks\.2\): .*{message}"):
        check_shapes(blocks, example, partition=Partition(cuts=(2,), num_blocks=3))


class Bare(nn.Module):
    """Fails in a method that is not reached through a module's call."""

    def forward_with_residuals(self, features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        raise ValueError("no")


def test_a_failure_outside_of_any_call_names_what_entered():
    with pytest.raises(InputError, match=r"^block 0 \(blocks\.0\): received \(2, 3\): ValueError: no$"):
        check_shapes(blocks_of(Bare()), torch.zeros(2, 3))


def test_dictionaries_pass_through():
    class Tokens(nn.Module):
        def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": features, "mask": features > 0}

    class Keep(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    outputs = check_shapes(blocks_of(Tokens(), Keep()), torch.zeros(2, 3))
    assert [sorted(output) for output in outputs if isinstance(output, dict)] == [["features", "mask"]] * 2
