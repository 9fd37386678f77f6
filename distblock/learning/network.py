"""A network as a flat list of blocks, each of which also hands out its residuals.

A residual block computes ``shortcut(x) + r(x)`` and shows only the sum; the transport cost needs r. A module of ours
(or a user's) hands r out by a method of its own. torchvision's blocks have none, so r is taken where their last
BatchNorm leaves it, by a hook that lives for one call; weights keep the network's own names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors, rebuild
from distblock.errors import InputError

__all__ = [
    "Block",
    "Features",
    "HandsOutResiduals",
    "blocks_state",
    "check_ownership",
    "detach",
    "joined",
    "main_tensor",
    "part_of",
    "run_blocks",
    "versions_of",
]


class HandsOutResiduals(Protocol):
    """A module that tells its residuals; one with several residual branches (a Transformer block) tells several."""

    def forward_with_residuals(self, features: Any, /) -> tuple[Any, list[Tensor]]:
        """What ``forward`` returns, and each branch's output from before its shortcut was added, in forward order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Block:
    """One entry of a network's flat list.

    Attributes:
        name: the residual block's name in the network, e.g. ``"layer1.0"``.
        modules: dotted name in the network and module, applied in order; the first block of a ResNet has the stem in
            front: ``conv1``, ``bn1``, ``relu``, ``maxpool``, ``layer1.0``.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]

    def run(self, features: Features) -> tuple[Features, list[Tensor]]:
        """The block's output and its residuals ``r_m``; no residuals where no module of it hands any out."""
        residuals: list[Tensor] = []
        for _, module in self.modules:
            features, handed_out = _run_module(module, features)
            residuals += handed_out
        return features, residuals


def run_blocks(blocks: Sequence[Block], features: Features) -> tuple[Features, list[Tensor]]:
    """The last block's output, and the residuals of all blocks in forward order."""
    residuals: list[Tensor] = []
    for block in blocks:
        features, handed_out = block.run(features)
        residuals += handed_out
    return features, residuals


def blocks_state(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Weights and buffers of blocks, themselves and no copies, by name in the network."""
    return {
        f"{name}.{key}": tensor
        for block in blocks
        for name, module in block.modules
        for key, tensor in module.state_dict().items()
    }


def main_tensor(features: Features) -> Tensor:
    """What the auxiliary classifier sees: the tensor, a tuple's first, a dict's ``features`` or else its first."""
    if isinstance(features, Tensor):
        return features
    if isinstance(features, dict):
        return features["features"] if "features" in features else next(iter(features.values()))
    return features[0]


def detach(features: Features) -> Features:
    """The same tensors without their graph."""
    return rebuild({key: tensor.detach() for key, tensor in named_tensors(features)})


def part_of(features: Features, part: slice | Tensor) -> Features:
    """Some of the samples; of a slice views, and of all samples a tensor itself."""
    if isinstance(features, Tensor) and isinstance(part, slice) and part == slice(None):
        return features
    return rebuild({key: tensor[part] for key, tensor in named_tensors(features)})


def joined(parts: Sequence[Features]) -> Features:
    """Parts of a microbatch, one after the other; a single one is handed back as it is."""
    if len(parts) == 1:
        return parts[0]
    tensors = [dict(named_tensors(part)) for part in parts]
    return rebuild({key: torch.cat([part[key] for part in tensors]) for key in tensors[0]})


def versions_of(features: Features) -> list[int]:
    """How often each tensor has been written to in place."""
    return [tensor._version for _, tensor in named_tensors(features)]


def check_ownership(blocks: Sequence[Block]) -> None:
    """See that every weight and buffer lies in one block alone: two workers cannot train the same weight.

    Raises:
        InputError: one lies in two; it names the weight and both blocks.
    """
    owners: dict[int, tuple[int, Block]] = {}
    for index, block in enumerate(blocks):
        for name, module in block.modules:
            for key, tensor in chain(module.named_parameters(), module.named_buffers()):
                owner, owning_block = owners.setdefault(id(tensor), (index, block))
                if owner != index:
                    raise InputError(
                        f"weight {name}.{key}: expected in one block alone, found in block {owner}"
                        f" ({owning_block.name}) and in block {index} ({block.name});"
                        " give each its own copy or join the two"
                    )


def _run_module(module: nn.Module, features: Features) -> tuple[Features, list[Tensor]]:
    # An isinstance of `HandsOutResiduals` takes as long as a small convolution.
    if hasattr(module, "forward_with_residuals"):
        own: Any = module
        return own.forward_with_residuals(features)
    if type(module) is nn.Sequential:
        return run_blocks(
            [Block(name=name, modules=((name, child),)) for name, child in module.named_children()], features
        )
    # Importing torchvision takes seconds; while nobody has, the module is none of its blocks.
    resnet = sys.modules.get("torchvision.models.resnet")
    if resnet is not None and isinstance(module, resnet.Bottleneck):
        return _run_watched(module, "bn3", features)
    if resnet is not None and isinstance(module, resnet.BasicBlock):
        return _run_watched(module, "bn2", features)
    swin = sys.modules.get("torchvision.models.swin_transformer")
    if swin is not None and isinstance(module, swin.SwinTransformerBlock):
        return _run_swin(module, features, norm_first=not isinstance(module, swin.SwinTransformerBlockV2))
    return module(features), []


def _run_swin(module: Any, features: Any, *, norm_first: bool) -> tuple[Features, list[Tensor]]:
    """torchvision's forward, with both branches handed out; version 2 normalizes after the branch."""
    residuals: list[Tensor] = []
    for branch, norm in ((module.attn, module.norm1), (module.mlp, module.norm2)):
        output = branch(norm(features)) if norm_first else norm(branch(features))
        residuals.append(module.stochastic_depth(output))
        features = features + residuals[-1]
    return features, residuals


def _run_watched(module: nn.Module, last_of_branch: str, features: Features) -> tuple[Features, list[Tensor]]:
    with _outputs(module.get_submodule(last_of_branch)) as residuals:
        return module(features), residuals


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module puts out.

    torchvision goes on with ``out += identity`` in place on that very tensor, so it is given a clone.
    """
    collected: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        collected.append(output)
        return output.clone()

    handle = module.register_forward_hook(keep)
    try:
        yield collected
    finally:
        handle.remove()
