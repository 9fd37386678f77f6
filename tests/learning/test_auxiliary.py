"""Auxiliary classifiers: their layers by hand, the shapes they take, and what they say to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, batch_norm, conv2d, linear, relu

from distblock.errors import InputError
from distblock.learning.auxiliary import build_classifier

MAPS = [(4, 4), (8, 8), (7, 7), (5, 3), (4, 8), (2, 2), (1, 1), (1, 4), (32, 32)]


def sizes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def test_conv_by_hand():
    """Oracle: the layers of the scripts' 1CNN as functions."""
    features = torch.randn(3, 4, 6, 6)
    classifier: Any = build_classifier("conv", features, num_classes=5)
    nn.init.normal_(classifier.bn.weight)
    hidden = avg_pool2d(relu(conv2d(features, classifier.conv.weight, padding=1)), 3)
    hidden = batch_norm(hidden, None, None, classifier.bn.weight, classifier.bn.bias, training=True)
    expected = linear(hidden.flatten(1), classifier.linear.weight, classifier.linear.bias)
    torch.testing.assert_close(classifier(features), expected)
    assert sizes(classifier) == [(4, 4, 3, 3), (4,), (4,), (5, 16), (5,)]


@pytest.mark.parametrize(
    ("side", "left"), [((8, 8), 2 * 2), ((7, 7), 2 * 2), ((5, 3), 5 * 3), ((4, 8), 2 * 4), ((2, 2), 4), ((1, 1), 1)]
)
def test_conv_pools_by_half_of_the_smaller_side(side: tuple[int, int], left: int):
    classifier: Any = build_classifier("conv", torch.empty(2, 4, *side), num_classes=3)
    assert classifier.linear.in_features == 4 * left


def test_linear_of_maps_tokens_and_vectors_by_hand():
    for features, pooled in [
        (maps := torch.randn(3, 4, 6, 5), maps.mean(dim=(2, 3))),
        (tokens := torch.randn(3, 7, 4), tokens.mean(dim=1)),
        (vectors := torch.randn(3, 4), vectors),
    ]:
        classifier: Any = build_classifier("linear", features, num_classes=5)
        expected = linear(pooled, classifier[-1].weight, classifier[-1].bias)
        torch.testing.assert_close(classifier(features), expected)
        assert sizes(classifier) == [(5, 4), (5,)]


def test_mlp_sr_by_hand():
    """Oracle: DGL's layers as functions, 9x9 pooled to 3x3 and then to 2x2."""
    features = torch.randn(3, 4, 9, 9)
    classifier = build_classifier("mlp-sr", features, num_classes=5)
    weights = list(classifier.parameters())
    hidden = adaptive_avg_pool2d(features, 3)
    for index in (0, 3, 6):
        hidden = relu(batch_norm(conv2d(hidden, weights[index]), None, None, training=True))
    hidden = adaptive_avg_pool2d(hidden, 2).flatten(1)
    for index in (9, 12, 15):
        hidden = relu(batch_norm(linear(hidden, weights[index]), None, None, training=True))
    torch.testing.assert_close(classifier(features), linear(hidden, weights[18], weights[19]))
    convolutions = [(4, 4, 1, 1), (4,), (4,)] * 3
    assert sizes(classifier) == [*convolutions, *[(16, 16), (16,), (16,)] * 3, (5, 16), (5,)]


@pytest.mark.parametrize("name", ["conv", "linear", "mlp-sr"])
@pytest.mark.parametrize("side", MAPS)
def test_any_map_is_classified_and_trains(name: str, side: tuple[int, int]):
    features = torch.randn(4, 3, *side)
    classifier = build_classifier(name, features, num_classes=10)
    logits = classifier(features)
    logits.square().sum().backward()
    assert logits.shape == (4, 10)
    assert all(parameter.grad is not None for parameter in classifier.parameters())


@pytest.mark.parametrize("name", ["conv", "mlp-sr"])
@pytest.mark.parametrize("shape", [(2, 8), (2, 16, 8)])
def test_what_is_no_map_is_sent_to_linear(name: str, shape: tuple[int, ...]):
    with pytest.raises(
        InputError, match=rf"model\.classifier {name}: expected maps .* \(2, .*--model\.classifier linear"
    ):
        build_classifier(name, torch.empty(shape), num_classes=10)


def test_linear_refuses_volumes():
    with pytest.raises(InputError, match=r"\(2, 3, 4, 4, 4\)"):
        build_classifier("linear", torch.empty(2, 3, 4, 4, 4), num_classes=10)
