"""A network as a flat list of blocks, and what a block hands out.

Networks nest their blocks in layers, and a library's residual block keeps its residual to itself. Here a network is a
list; every entry knows its modules by their own dotted names, so weights keep the network's keys however it is cut;
and a block's residual is taken where it arises.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors
from distblock.errors import InputError


@runtime_checkable
class HandsOutResiduals(Protocol):
    """A module that takes part in the transport cost."""

    def forward_with_residuals(self, features: Features) -> tuple[Features, list[Tensor]]:
        """The output, and the output of each residual branch before its shortcut is added."""
        ...


@dataclass(frozen=True, kw_only=True)
class Block:
    """One entry of a network's list.

    Attributes:
        name: its name in the network, e.g. ``layer1.0``.
        modules: modules applied in order, each with its dotted name in the network. A stem belongs to the first block.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]

    def run(self, features: Features) -> tuple[Features, list[Tensor]]:
        """The block's output, and the residuals it hands out."""
        residuals: list[Tensor] = []
        for _, module in self.modules:
            features, own = _run_module(module, features)
            residuals += own
        return features, residuals


def run_blocks(blocks: Sequence[Block], features: Features) -> tuple[Features, list[Tensor]]:
    """Blocks one after the other; the last output, and all residuals in order."""
    residuals: list[Tensor] = []
    for block in blocks:
        features, own = block.run(features)
        residuals += own
    return features, residuals


def main_tensor(features: Features) -> Tensor:
    """What an auxiliary classifier sees: the tensor itself, a tuple's first, a dict's ``features`` or first."""
    if isinstance(features, dict) and "features" in features:
        return features["features"]
    return next(iter(named_tensors(features)))[1]


def check_ownership(blocks: Sequence[Block]) -> None:
    """Every parameter and buffer lies in exactly one block.

    Raises:
        InputError: two blocks share one; it names the tensor and both blocks.
    """
    owners: dict[int, str] = {}
    for block in blocks:
        tensors = {
            id(tensor): f"{name}.{key}"
            for name, module in block.modules
            for key, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        for identity, tensor_name in tensors.items():
            if identity in owners:
                raise InputError(
                    f"model: {tensor_name} lies in block {owners[identity]} and in block {block.name}; every parameter"
                    " must lie in exactly one block: give each its own"
                )
            owners[identity] = block.name


def _run_module(module: nn.Module, features: Features) -> tuple[Features, list[Tensor]]:
    if isinstance(module, HandsOutResiduals):
        return module.forward_with_residuals(features)
    # Importing torchvision takes seconds; if nobody has, the module is none of its blocks.
    resnet = sys.modules.get("torchvision.models.resnet")
    if resnet is not None and isinstance(module, resnet.BasicBlock):
        return _run_hooked(module, "bn2", features)
    if resnet is not None and isinstance(module, resnet.Bottleneck):
        return _run_hooked(module, "bn3", features)
    return module(features), []


def _run_hooked(block: nn.Module, last: str, features: Features) -> tuple[Features, list[Tensor]]:
    """Torchvision's block, its residual taken where its last BatchNorm leaves it.

    The block then adds the shortcut to that very tensor in place, so it goes on with a copy.
    """
    residuals: list[Tensor] = []

    def take(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        residuals.append(output)
        return output.clone()

    handle = block.get_submodule(last).register_forward_hook(take)
    try:
        return block(features), residuals
    finally:
        handle.remove()
