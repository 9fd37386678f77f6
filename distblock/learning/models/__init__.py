"""Architectures, each a flat list of blocks, by name or by import path."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.learning.initialization import initialize
from distblock.learning.models import cifar, preact, torchvision_resnets, user
from distblock.learning.network import Block
from distblock.seeds import derive_seed

NAMES = (*cifar.NAMES, *(f"torchvision/{name}" for name in torchvision_resnets.NAMES), "preact/10-1")
"""What can be asked for by name; K-M ResNets with any K and M."""


def build_network(
    config: ModelConfig,
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    seed: int,
    build: Callable[[int, int, int], Sequence[nn.Module]] | None = None,
) -> list[Block]:
    """All blocks of a network, initialized.

    Every block is initialized from its own seed, so its weights do not depend on where the network is cut.

    Args:
        config: name, width and initialization.
        in_channels, image_size, num_classes: what the network is for.
        seed: the run's.
        build: the user's own network, instead of the name.

    Raises:
        InputError: no such name, or the user's function cannot be found, called or used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        if build is not None or ":" in config.name:
            blocks = user.build_blocks(config.name, build, in_channels, image_size, num_classes)
            default = "built"
        else:
            blocks = _by_name(config, in_channels)
            default = "orthogonal"
    how = default if config.initialization == "auto" else config.initialization
    for index, block in enumerate(blocks):
        for position, (_, module) in enumerate(block.modules):
            initialize(module, how, gain=config.gain, seed=derive_seed(seed, "block", index, position))
    return blocks


def _by_name(config: ModelConfig, in_channels: int) -> list[Block]:
    family, _, name = config.name.rpartition("/")
    if family == "" and name in cifar.NAMES:
        return cifar.build_blocks(name, in_channels, width=config.width or 16)
    if family == "torchvision" and name in torchvision_resnets.NAMES:
        return torchvision_resnets.build_blocks(name, in_channels)
    if family == "preact":
        return preact.build_blocks(name, in_channels, width=config.width or 256)
    near = difflib.get_close_matches(config.name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(NAMES)}, or package.module:function"
    raise InputError(f"model.name: {config.name} is unknown; {hint}")
