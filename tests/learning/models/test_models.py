"""The architectures: by hand, against torchvision, and what is said of names that are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu

from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.learning.models import build_network
from distblock.learning.network import Block, check_ownership, main_tensor, run_blocks
from distblock.vision import models


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(name: str, **settings: Any) -> list[Block]:
    in_channels = settings.pop("in_channels", 3)
    seed = settings.pop("seed", 0)
    own = settings.pop("build", None)
    config = ModelConfig(name=name, **settings)
    return build_network(config, in_channels=in_channels, image_size=32, num_classes=10, seed=seed, build=own)


def run(blocks: list[Block], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaving, residuals = run_blocks(blocks, x)
    return main_tensor(leaving), residuals


def state_of(blocks: list[Block]) -> dict[str, Tensor]:
    parts = [(name, module) for block in blocks for name, module in block.modules]
    return {f"{name}.{key}": tensor for name, module in parts for key, tensor in module.state_dict().items()}


def num_parameters(blocks: list[Block]) -> int:
    return sum(p.numel() for block in blocks for _, module in block.modules for p in module.parameters())


def normalize(features: Tensor) -> Tensor:
    """BatchNorm in training mode with weight 1 and bias 0, written out."""
    variance = features.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    return (features - features.mean(dim=(0, 2, 3), keepdim=True)) / torch.sqrt(variance + 1e-5)


@pytest.mark.parametrize(("depth", "per_group"), [(8, 1), (14, 2), (20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
def test_cifar_resnets_have_their_depth(depth: int, per_group: int):
    blocks = build(f"resnet{depth}", initialization="built")
    assert [block.name for block in blocks] == [f"layer{g}.{i}" for g in (1, 2, 3) for i in range(per_group)]
    convolutions = [tensor for name, tensor in state_of(blocks).items() if tensor.ndim == 4]
    assert len(convolutions) == depth - 1  # the last layer is a stage's classifier
    assert [name for name, _ in blocks[0].modules] == ["conv1", "bn1", "relu", "layer1.0"]


def test_resnet20_has_the_paper_s_number_of_weights():
    """Oracle: 0.27 M in He et al. 2016, table 6; by hand 269,722, of which 64 * 10 + 10 are the classifier's."""
    assert num_parameters(build("resnet20", initialization="built")) == 269_722 - 650


@pytest.mark.parametrize("image_size", [8, 9, 32])
def test_cifar_blocks_by_hand(image_size: int):
    """Oracle: the whole of resnet8 as functions, in float64."""
    blocks = build("resnet8", width=4, in_channels=1)
    state = {name: tensor.double() for name, tensor in state_of(blocks).items()}
    for block in blocks:
        for _, module in block.modules:
            module.double()
    x = torch.randn(3, 1, image_size, image_size, dtype=torch.float64)
    leaving, residuals = run(blocks, x)
    x = relu(normalize(conv2d(x, state["conv1.weight"], padding=1)))
    for group, residual in zip((1, 2, 3), residuals, strict=True):
        stride = 1 if group == 1 else 2
        name = f"layer{group}.0"
        hidden = relu(normalize(conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)))
        expected = normalize(conv2d(hidden, state[f"{name}.conv2.weight"], padding=1))
        torch.testing.assert_close(residual, expected)
        shortcut = x if group == 1 else pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        x = relu(shortcut + expected)
    torch.testing.assert_close(leaving, x)
    assert x.shape[:2] == (3, 16)


def test_a_cifar_block_s_forward_is_its_output():
    module: Any = build("resnet8")[1].modules[0][1]
    x = torch.randn(2, 16, 8, 8)
    module.eval()
    assert torch.equal(module(x), module.forward_with_residuals(x)[0])


def test_preactivation_network_by_hand():
    """Oracle: 2-1 as functions, in float64: encoder, block, halving, block."""
    blocks = build("preact/2-1", width=4)
    state = {name: tensor.double() for name, tensor in state_of(blocks).items()}
    for block in blocks:
        for _, module in block.modules:
            module.double()
    entering = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    leaving, residuals = run(blocks, entering)

    def branch(x: Tensor, name: str) -> Tensor:
        hidden = conv2d(relu(normalize(x)), state[f"{name}.conv1.weight"], padding=1)
        return conv2d(relu(normalize(hidden)), state[f"{name}.conv2.weight"], padding=1)

    x = conv2d(entering, state["encoder.weight"], stride=2, padding=1)
    first = branch(x, "blocks.0")
    x = conv2d(x + first, state["downsample.weight"], stride=2, padding=1)
    second = branch(x, "blocks.1")
    assert x.shape == (3, 8, 2, 2)
    torch.testing.assert_close(leaving, x + second)
    torch.testing.assert_close(residuals, [first, second])


def test_preactivation_blocks_and_the_place_of_the_halving():
    blocks = build("preact/10-1", width=4)
    assert [block.name for block in blocks] == ["encoder", *(f"blocks.{m}" for m in range(10))]
    assert [name for name, _ in blocks[6].modules] == ["downsample", "blocks.5"]
    assert sum(len(block.modules) for block in blocks) == 12


def test_2_7_has_45_million_weights():
    """Oracle: by hand, 42.5 million; with the conv classifiers of its two stages 45.5: the paper's 45 million."""
    convolutions = 3 * 256 * 9 + 14 * 256 * 256 * 9 + 256 * 512 * 9 + 14 * 512 * 512 * 9
    normalizations = 14 * 2 * 256 + 14 * 2 * 512
    network = num_parameters(build("preact/2-7", initialization="built"))
    assert network == convolutions + normalizations
    classifiers = sum(c * c * 9 + 2 * c + 4 * c * 10 + 10 for c in (256, 512))
    assert 45.0e6 < network + classifiers < 45.6e6


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_networks_are_torchvision_s_own(name: str):
    """Oracle: torchvision's forward with its classifier taken off, on the same weights, bit for bit."""
    blocks = build(f"torchvision/{name}", initialization="built")
    state = state_of(blocks)
    reference: Any = models.get_model(name, weights=None)
    reference.fc = nn.Identity()
    assert list(state) == list(reference.state_dict())
    reference.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        reference.train(training)
        for block in blocks:
            for _, module in block.modules:
                module.train(training)
        with torch.no_grad():
            leaving, residuals = run(blocks, x)
            assert torch.equal(torch.flatten(nn.functional.adaptive_avg_pool2d(leaving, 1), 1), reference(x))
        assert len(residuals) == len(blocks)


def test_every_torchvision_resnet_is_listed():
    """Oracle: torchvision's documentation of its ResNets, ResNeXts and Wide ResNets."""
    with pytest.raises(InputError) as caught:
        build("nothing-like-it")
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"):
        assert f"torchvision/{name}" in str(caught.value)
    for name in ("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"):
        assert f"torchvision/{name}" in str(caught.value)


def test_other_channels_remake_torchvision_s_first_convolution():
    blocks = build("torchvision/resnet18", in_channels=1, initialization="built")
    state = state_of(blocks)
    assert state["conv1.weight"].shape == (64, 1, 7, 7)
    assert run(blocks, torch.randn(2, 1, 32, 32))[0].shape == (2, 512, 1, 1)


@pytest.mark.parametrize("name", ["resnet8", "preact/2-1", "torchvision/resnet18"])
@pytest.mark.parametrize("initialization", ["auto", "kaiming", "built"])
def test_equal_seeds_give_equal_weights(name: str, initialization: str):
    width = None if name.startswith("torchvision") else 4
    torch.manual_seed(1)
    first = state_of(build(name, width=width, initialization=initialization))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = state_of(build(name, width=width, initialization=initialization))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = state_of(build(name, width=width, initialization=initialization, seed=1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    drawn = [key for key in first if first[key].ndim == 4]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_blocks_of_equal_shape_draw_different_weights():
    state = state_of(build("resnet20"))
    assert not torch.equal(state["layer1.1.conv1.weight"], state["layer1.2.conv1.weight"])


def test_a_deeper_network_begins_with_the_weights_of_a_shallower_one():
    shallow, deep = state_of(build("resnet8")), state_of(build("resnet14"))
    assert torch.equal(shallow["layer1.0.conv2.weight"], deep["layer1.0.conv2.weight"])


def own_network(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, 4, 3), nn.Linear(image_size - 2, num_classes)]


def test_own_network_keeps_its_weights_and_is_reproducible():
    blocks = build("resnet8", build=own_network)
    assert [block.name for block in blocks] == ["blocks.0", "blocks.1"]
    state, again = state_of(blocks), state_of(build("resnet8", build=own_network))
    assert state["blocks.0.bias"].abs().sum() > 0  # torch's own initialization, not ours
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert run(blocks, torch.zeros(2, 3, 32, 32))[0].shape == (2, 4, 30, 10)
    check_ownership(blocks)


def test_own_network_is_initialized_if_asked():
    state = state_of(build("resnet8", build=own_network, initialization="orthogonal"))
    assert torch.equal(state["blocks.0.bias"], torch.zeros(4))


@pytest.fixture
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write an importable file into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_own_network_by_import_path(module_file: Callable[[str, str], None]):
    module_file("nets_a", "from torch import nn\ndef mine(c, s, k):\n    return nn.Sequential(nn.Conv2d(c, k, 3))\n")
    assert state_of(build("nets_a:mine"))["blocks.0.weight"].shape == (10, 3, 3, 3)


def test_import_paths_that_lead_nowhere(module_file: Callable[[str, str], None]):
    module_file("nets_b", "def build_mine(a, b, c): return []\n")
    module_file("nets_c", "import missing_module_xyz\n")
    with pytest.raises(InputError, match=r"no function 'build_min'; did you mean build_mine\?"):
        build("nets_b:build_min")
    with pytest.raises(InputError, match="no function 'zzz'; it has build_mine"):
        build("nets_b:zzz")
    with pytest.raises(InputError, match="missing_module_xyz"):
        build("nets_c:mine")
    with pytest.raises(InputError, match="cannot import no_such_nets"):
        build("no_such_nets:mine")


def failing(in_channels: int, image_size: int, num_classes: int) -> list[nn.Module]:
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda a: [nn.ReLU()], r"expected a function of \(in_channels, image_size, num_classes\), got one of \(a\)"),
        (lambda a, b, c: [], "expected at least one block, got an empty list"),
        (lambda a, b, c: nn.ReLU(), "expected a list of torch.nn.Module, one a block, got ReLU"),
        (lambda a, b, c: [nn.ReLU(), len], "got builtin_function_or_method at position 1"),
        (failing, r"failing\(3, 32, 10\): .* RuntimeError: two lines$"),
    ],
)
def test_own_networks_that_are_none(own: Any, message: str):
    with pytest.raises(InputError, match=message):
        build("resnet8", build=own)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet111", "resnet110"), ("torchvision/resnet19", "torchvision/resnet18"), ("preact/10", "preact/10-1")],
)
def test_unknown_names_get_a_suggestion(name: str, suggestion: str):
    with pytest.raises(InputError, match=rf"unknown network '{name}'; did you mean {suggestion}\?"):
        build(name)


def test_a_width_for_a_network_that_has_its_own():
    with pytest.raises(InputError, match=r"model\.width: expected none for torchvision/resnet18, .* got 8"):
        build("torchvision/resnet18", width=8)
    with pytest.raises(InputError, match=r"model\.width: expected none for your own network"):
        build("resnet8", width=8, build=own_network)


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
def test_blocks_that_are_not_needed_are_not_drawn_and_the_others_are_the_same(name: str):
    config = ModelConfig(name=name)
    whole, part = (
        build_network(config, in_channels=3, image_size=32, num_classes=10, seed=0, needed=needed)
        for needed in (None, range(1, 2))
    )
    assert len(part) == len(whole)
    for place, (expected, got) in enumerate(zip(whole, part, strict=True)):
        pairs = zip(state_of([expected]).values(), state_of([got]).values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (place == 1)
