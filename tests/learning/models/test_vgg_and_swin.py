"""VGG and Swin: taken apart into blocks, they compute what torchvision's own networks compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distblock.config import ModelConfig
from distblock.learning.models import build_network
from distblock.learning.network import Block, run_blocks
from distblock.learning.objective import stage_transport_cost, transport_cost
from distblock.vision import models


def build(name: str, in_channels: int = 3, initialization: str = "auto") -> list[Block]:
    config = ModelConfig.model_validate({"name": f"torchvision/{name}", "initialization": initialization})
    return build_network(config, in_channels=in_channels, image_size=32, num_classes=10, seed=0)


def own(blocks: list[Block]) -> dict[str, Tensor]:
    parts = [(name, module) for block in blocks for name, module in block.modules]
    return {f"{name}.{key}": tensor for name, module in parts for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("name", "num_blocks"), [("vgg11", 8), ("vgg19_bn", 16), ("swin_t", 12), ("swin_v2_t", 12)])
def test_blocks_compute_what_torchvision_computes(name: str, num_blocks: int):
    blocks = build(name)
    assert len(blocks) == num_blocks
    network: Any = models.get_model(name, weights=None)
    missing, unexpected = network.load_state_dict(own(blocks), strict=False)
    assert not unexpected
    assert all(key.startswith(("classifier.", "head.")) for key in missing)
    network.eval()
    for block in blocks:
        for _, module in block.modules:
            module.eval()
    image = torch.randn(2, 3, 64, 64)
    expected = network.features(image)
    if name.startswith("swin"):
        expected = network.norm(expected).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert torch.allclose(run_blocks(blocks, image)[0], expected, atol=1e-6)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_a_swin_block_hands_out_attention_and_mlp(name: str):
    block = build(name)[1]
    entering = torch.randn(2, 96, 8, 8)
    for _, module in block.modules:
        module.eval()
    leaving, residuals = block.run(entering)
    assert isinstance(leaving, Tensor)
    assert len(residuals) == 2
    moved = (residuals[0] + residuals[1]).permute(0, 3, 1, 2)
    assert torch.allclose(entering + moved, leaving, atol=1e-6)
    # Oracle: each branch counts by itself.
    assert transport_cost(residuals).item() == pytest.approx(sum(r.square().mean().item() for r in residuals))


def test_a_vgg_stage_costs_its_distance_where_shapes_agree():
    blocks = build("vgg11")
    entering = torch.randn(2, 256, 4, 4)
    leaving, residuals = blocks[3].run(entering)  # 256 to 256 channels, then pooled
    assert residuals == []
    assert stage_transport_cost(entering, leaving, residuals) is None
    leaving, _ = run_blocks([Block(name="conv", modules=blocks[3].modules[:2])], entering)
    cost = stage_transport_cost(entering, leaving, [])
    assert isinstance(leaving, Tensor)
    assert cost is not None
    assert cost.item() == pytest.approx((leaving - entering).square().mean().item())


@pytest.mark.parametrize("name", ["vgg11", "swin_t"])
def test_other_channels_remake_the_first_convolution(name: str):
    blocks = build(name, in_channels=1)
    leaving, _ = run_blocks(blocks[:1], torch.randn(2, 1, 32, 32))
    assert isinstance(leaving, Tensor)
    assert leaving.shape[1] in (64, 96)


def test_swin_keeps_its_own_initialization_and_vgg_is_drawn_orthogonal():
    linear = dict(build("swin_t")[0].modules)["features.1.0"].get_submodule("mlp.0")
    assert isinstance(linear, nn.Linear)
    assert not torch.allclose(linear.weight.T @ linear.weight, 0.01 * torch.eye(96), atol=1e-3)
    other = dict(build("swin_t", initialization="orthogonal")[0].modules)["features.1.0"].get_submodule("mlp.0")
    assert isinstance(other, nn.Linear)
    assert torch.allclose(other.weight.T @ other.weight, 0.01 * torch.eye(96), atol=1e-3)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn"])
def test_a_vgg_as_built_begins_as_torchvision_has_it(name: str):
    found, theirs = own(build(name, initialization="built")), models.get_model(name, weights=None).state_dict()
    for key, tensor in found.items():
        if tensor.dim() == 4:
            assert tensor.std() == pytest.approx(theirs[key].std().item(), rel=0.1)
            assert tensor.mean() == pytest.approx(0, abs=0.01)
        else:
            assert torch.equal(tensor, theirs[key])


def test_a_vgg_is_built_without_the_classifier_that_nobody_uses(monkeypatch: pytest.MonkeyPatch):
    largest = 0
    empty = nn.Module.to_empty

    def to_empty(module: nn.Module, **more: Any) -> nn.Module:
        nonlocal largest
        largest = max(largest, *(tensor.numel() for tensor in module.state_dict().values()))
        return empty(module, **more)

    monkeypatch.setattr(nn.Module, "to_empty", to_empty)
    build("vgg11")
    assert 0 < largest == 512 * 512 * 9
