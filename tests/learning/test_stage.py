"""A stage's training step: the oracle is the step written out with functions in float64, and SGD by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import basic_by_hand, bottleneck_by_hand, cifar_by_hand, preactivation_by_hand
from torch import Tensor, nn
from torch.nn.functional import conv2d

from distblock.config import make_config
from distblock.learning.auxiliary import build_classifier
from distblock.learning.models.cifar import CifarBlock
from distblock.learning.models.preact import PreactivationBlock
from distblock.learning.network import Block
from distblock.learning.stage import Stage, weights_sha256
from distblock.messages import Item
from distblock.vision import models

ByHand = Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]
"""The block's output and what the transport cost is the mean square of, if it has one."""

TAU, LR, MOMENTUM, DECAY = 0.05, 0.1, 0.9, 0.01
SGD = {"name": "sgd", "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "schedule": "constant"}
ITEM = Item(
    number=0,
    purpose="train",
    part="train",
    epoch=0,
    index=0,
    first_sample=0,
    num_samples=6,
    batch_samples=6,
    closes_batch=True,
    closes_pass=False,
)


def narrowing(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels))


def plain_by_hand(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    leaving = conv2d(x, block.weight, block.bias, padding=1)
    return leaving, leaving - x


def reshaping_by_hand(block: Any, x: Tensor) -> tuple[Tensor, None]:
    return conv2d(x, block.weight, block.bias, stride=2), None


BLOCKS: dict[str, tuple[Callable[[], nn.Module], ByHand]] = {
    "cifar": (lambda: CifarBlock(8, 8, 1), cifar_by_hand),
    "cifar-narrowing": (lambda: CifarBlock(8, 12, 2), cifar_by_hand),
    "preactivation": (lambda: PreactivationBlock(8), preactivation_by_hand),
    "torchvision-basic": (lambda: models.resnet.BasicBlock(8, 8), basic_by_hand),
    "torchvision-basic-narrowing": (
        lambda: models.resnet.BasicBlock(8, 12, stride=2, downsample=narrowing(12)),
        basic_by_hand,
    ),
    "torchvision-bottleneck": (lambda: models.resnet.Bottleneck(8, 2), bottleneck_by_hand),
    "torchvision-bottleneck-narrowing": (
        lambda: models.resnet.Bottleneck(8, 3, stride=2, downsample=narrowing(12)),
        bottleneck_by_hand,
    ),
    "not-residual": (lambda: nn.Conv2d(8, 8, 3, padding=1), plain_by_hand),
    "not-residual-reshaping": (lambda: nn.Conv2d(8, 8, 2, stride=2), reshaping_by_hand),
}


def make_stage(module: nn.Module, *, classifier: nn.Module | None = None, features: Tensor, **config: Any) -> Stage:
    config = {"optimizer": SGD, "objective": {"tau": TAU}, **config}
    leaving = module(features)
    return Stage(
        index=0,
        num_stages=2,
        blocks=[Block(name="block", modules=(("block", module),))],
        classifier=classifier or build_classifier("linear", leaving, num_classes=5),
        config=make_config(config),
        steps_per_epoch=10,
        device=torch.device("cpu"),
    )


def draw(seed: int, *, samples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 8, 6, 6, generator=generator)
    return features, torch.randint(5, (samples,), generator=generator)


def cross_entropy_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits[torch.arange(len(labels)), labels]
    return (logits.exp().sum(dim=1).log() - chosen).mean()


@pytest.mark.parametrize("name", BLOCKS)
def test_two_training_steps_by_hand(name: str):
    torch.manual_seed(0)
    make, by_hand = BLOCKS[name]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.2, 0.3)
    features, labels = draw(1)
    stage = make_stage(module, features=features)
    reference = copy.deepcopy(stage.module).double()
    block, head = reference.get_submodule("network.block"), reference.get_submodule("classifier")
    parameters = dict(reference.named_parameters())
    momentum = {key: torch.zeros_like(value) for key, value in parameters.items()}

    for step in range(2):
        features, labels = draw(step)
        leaving, measures = stage.train(replace(ITEM, number=step), features, labels)

        expected, moved = by_hand(block, features.double())
        logits = expected.mean(dim=(2, 3)) @ head.get_parameter("2.weight").T + head.get_parameter("2.bias")
        cross_entropy = cross_entropy_by_hand(logits, labels)
        cost = torch.tensor(0.0) if moved is None else (moved**2).sum() / moved.numel()
        loss = cross_entropy + cost / (2 * TAU)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                momentum[key] = MOMENTUM * momentum[key] + gradient + DECAY * parameter
                parameter -= LR * momentum[key]

        assert isinstance(leaving, Tensor)
        assert not leaving.requires_grad
        torch.testing.assert_close(leaving.double(), expected.detach(), atol=2e-5, rtol=1e-4)
        assert measures.loss_sum == pytest.approx(6 * cross_entropy.item(), rel=1e-4)
        assert measures.transport_cost_sum == pytest.approx(6 * cost.item(), rel=1e-4)
        assert measures.num_correct == int((logits.argmax(dim=1) == labels).sum())
        assert measures.lr == LR
        for key, parameter in stage.module.named_parameters():
            torch.testing.assert_close(parameter.double(), parameters[key], atol=5e-5, rtol=5e-4, msg=key)


def test_nothing_reaches_the_stage_before():
    features, labels = draw(0)
    features.requires_grad_()
    stage = make_stage(CifarBlock(8, 8, 1), features=features)
    stage.train(ITEM, features.detach(), labels)
    assert features.grad is None


def test_infinite_tau_is_greedy_learning():
    """Oracle: the gradient of the cross-entropy alone."""
    features, labels = draw(0)
    stage = make_stage(CifarBlock(8, 8, 1), features=features, objective={"tau": math.inf})
    reference = copy.deepcopy(stage.module).train()
    logits = reference["classifier"](reference.get_submodule("network.block")(features))
    nn.functional.cross_entropy(logits, labels).backward()
    _, measures = stage.train(ITEM, features, labels)
    assert measures.transport_cost_sum > 0
    for parameter, expected in zip(stage.module.parameters(), reference.parameters(), strict=True):
        assert expected.grad is not None
        with torch.no_grad():
            torch.testing.assert_close(parameter, expected - LR * (expected.grad + DECAY * expected))


def test_accumulated_pieces_are_the_batch():
    """Oracle: the whole batch at once; without BatchNorm they are the same mathematics."""
    features, labels = draw(0)
    whole = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features)
    pieces = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features)
    pieces.load(whole.state())
    whole.train(ITEM, features, labels)
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        before = weights_sha256(pieces.state())
        item = replace(ITEM, number=number, num_samples=part.stop - part.start, closes_batch=number == 1)
        pieces.train(item, features[part], labels[part])
        assert (weights_sha256(pieces.state()) != before) == (number == 1)
    for one, other in zip(pieces.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step():
    features, labels = draw(0)
    optimizer = {**SGD, "weight_decay": 0.0, "clip_norm": 1e-3}
    stage = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features, optimizer=optimizer)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in stage.module.parameters()])
    stage.train(ITEM, features, labels)
    after = torch.cat([parameter.detach().flatten() for parameter in stage.module.parameters()])
    assert (after - before).norm().item() == pytest.approx(LR * 1e-3, rel=1e-2)


def test_label_smoothing_in_training_alone():
    """Oracle: (1 - e) of the label's and e of the mean of all classes' negative log-probabilities."""
    features, labels = draw(0)
    objective = {"tau": "inf", "label_smoothing": 0.2}
    stage = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features, objective=objective)
    logits = stage.module["classifier"](stage.module.get_submodule("network.block")(features)).detach().double()
    logarithms = logits - logits.exp().sum(dim=1, keepdim=True).log()
    chosen = logarithms[torch.arange(6), labels]
    _, evaluated = stage.evaluate(features, labels)
    _, trained = stage.train(ITEM, features, labels)
    assert evaluated.loss_sum == pytest.approx(-chosen.sum().item(), rel=1e-5)
    assert evaluated.lr is None
    assert trained.loss_sum == pytest.approx(-(0.8 * chosen + 0.2 * logarithms.mean(dim=1)).sum().item(), rel=1e-5)


def test_evaluation_changes_nothing():
    features, labels = draw(0)
    stage = make_stage(CifarBlock(8, 8, 1), features=features)
    before = weights_sha256(stage.state())
    first, _ = stage.evaluate(features, labels)
    part, _ = stage.evaluate(features[:2], labels[:2])
    assert weights_sha256(stage.state()) == before
    assert isinstance(first, Tensor)
    assert isinstance(part, Tensor)
    torch.testing.assert_close(first[:2], part)  # running statistics: a sample's output does not depend on the others


def test_a_loss_that_is_not_finite_is_refused():
    features, labels = draw(0)
    stage = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features)
    before = weights_sha256(stage.state())
    with pytest.raises(FloatingPointError, match=r"the loss is not finite .*smaller optimizer\.lr"):
        stage.train(ITEM, features * float("inf"), labels)
    assert weights_sha256(stage.state()) == before


class Late(nn.Module):
    """Writes to its input at the second call, when the trial run is long over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        if len(features) == 6:
            features += 1
        return features * self.scale


def test_a_write_to_the_input_is_refused():
    features, labels = draw(0)
    stage = make_stage(Late(), features=features[:2])
    with pytest.raises(ValueError, match="wrote to its input in place"):
        stage.train(ITEM, features, labels)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(features), 0.5, self.training)


def test_random_layers_draw_by_microbatch_whoever_shares_the_process():
    features, labels = draw(0)
    module = Noisy()
    head = build_classifier("linear", features, num_classes=5)
    stages = [
        make_stage(copy.deepcopy(module), classifier=copy.deepcopy(head), features=features, objective={"tau": "inf"})
        for _ in range(2)
    ]
    one, _ = stages[0].train(ITEM, features, labels)
    torch.rand(17)
    same, _ = stages[1].train(ITEM, features, labels)
    other, _ = stages[1].train(replace(ITEM, index=1), features, labels)
    assert isinstance(one, Tensor)
    assert isinstance(same, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(one, same)
    assert not torch.equal(one == 0, other == 0)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    features, labels = draw(0)
    module, head = CifarBlock(8, 8, 1), build_classifier("conv", features, num_classes=5)
    exact = make_stage(copy.deepcopy(module), classifier=copy.deepcopy(head), features=features)
    short = make_stage(module, classifier=head, features=features, precision="bf16")
    _, expected = exact.train(ITEM, features, labels)
    _, measures = short.train(ITEM, features, labels)
    assert measures.loss_sum == pytest.approx(expected.loss_sum, rel=0.02)
    assert measures.loss_sum != expected.loss_sum
    assert {parameter.dtype for parameter in short.module.parameters()} == {torch.float32}


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": self.linear(features["features"]) * features["mask"], "mask": features["mask"]}


def test_dictionaries_of_tensors():
    tokens, labels = torch.randn(6, 4, 8), torch.randint(5, (6,))
    features = {"features": tokens, "mask": torch.ones(6, 4, 1)}
    stage = Stage(
        index=1,
        num_stages=2,
        blocks=[Block(name="block", modules=(("block", Masked()),))],
        classifier=build_classifier("linear", tokens, num_classes=5),
        config=make_config({"objective": {"tau": TAU}}),
        steps_per_epoch=1,
        device=torch.device("cpu"),
    )
    moved = nn.functional.linear(tokens, *stage.module.get_submodule("network.block.linear").parameters()) - tokens
    leaving, measures = stage.train(ITEM, features, labels)
    assert isinstance(leaving, dict)
    assert sorted(leaving) == ["features", "mask"]
    assert measures.transport_cost_sum == pytest.approx(6 * moved.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"schedule": "constant"}, [0.1] * 20),
        ({"schedule": "cosine"}, [0.05 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]),
        (
            {"schedule": "step", "milestones": [0.25, 0.5], "step_factor": 0.1},
            [0.1] * 5 + [0.01] * 5 + [0.001] * 10,
        ),
        ({"schedule": "constant", "warmup_epochs": 0.4}, [0.025, 0.05, 0.075, 0.1] + [0.1] * 16),
    ],
    ids=["constant", "cosine", "step", "warm-up"],
)
def test_learning_rate_of_every_step(optimizer: dict[str, Any], expected: list[float]):
    """Oracle: the schedules' formulas over 2 epochs of 10 steps."""
    features, labels = draw(0)
    stage = make_stage(
        nn.Conv2d(8, 8, 3, padding=1),
        features=features,
        optimizer={**SGD, "lr": 0.1, **optimizer},
        regime={"epochs": 2},
    )
    places = [replace(ITEM, epoch=step // 10, first_sample=64 * (step % 10)) for step in range(20)]
    rates = [stage.train(place, features, labels)[1].lr for place in places]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_adam_s_first_step_has_the_length_of_its_rate():
    """Oracle: at the first step Adam's moments cancel: every weight with a gradient moves by lr."""
    features, labels = draw(0)
    adam = {"name": "adam", "lr": 0.01, "weight_decay": 0.0, "schedule": "constant"}
    stage = make_stage(nn.Conv2d(8, 8, 3, padding=1), features=features, optimizer=adam)
    before = stage.state()["network.block.weight"].clone()
    stage.train(ITEM, features, labels)
    moved = (stage.state()["network.block.weight"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-5, rtol=1e-3)


def test_a_hash_tells_names_shapes_and_types_apart():
    state = {"a": torch.arange(4.0), "b": torch.ones(2)}
    others = [
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.ones(2)},
        {"a": torch.arange(4.0).double(), "b": torch.ones(2)},
        {"c": torch.arange(4.0), "b": torch.ones(2)},
    ]
    assert weights_sha256(dict(reversed(state.items()))) == weights_sha256(state)
    assert len({weights_sha256(each) for each in [state, *others]}) == 4
