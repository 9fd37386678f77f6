"""Architectures by name, as flat lists of blocks.

Every process builds the whole network by itself, so what it holds may depend on the seed and on names alone: each
module draws from its own derived seed, whatever the partition.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch

from distblock.config import ModelConfig
from distblock.errors import InputError
from distblock.imports import import_callable
from distblock.learning.initialization import Initialization, initialize
from distblock.learning.models import cifar, preact, swin, torchvision_resnets, user, vgg
from distblock.learning.models.user import Build
from distblock.learning.network import Block
from distblock.seeds import derive_seed

__all__ = ["Build", "build_network"]

CIFAR_NAMES = tuple(f"resnet{depth}" for depth in cifar.DEPTHS)
PREACT_NAME = re.compile(r"preact/([1-9]\d*)-([1-9]\d*)")


def build_network(
    config: ModelConfig,
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    seed: int,
    build: Build | None = None,
    needed: range | None = None,
) -> list[Block]:
    """The network that ``config`` names, initialized, on the CPU.

    Args:
        config: name, width, initialization and gain are used.
        in_channels: channels of the images.
        image_size: their side; only the user's own network asks for it.
        num_classes: classes; likewise.
        seed: the run's seed; equal seeds give equal weights, however the network is cut.
        build: the user's own network, instead of ``config.name``.
        needed: blocks whose weights are asked for; the others stay as their constructors leave them, since orthogonal
            matrices take time and memory. Default: all.

    Returns:
        The blocks in forward order; the network's own last classifier is not among them.

    Raises:
        InputError: the name is unknown, a width is given to a network that has a fixed one, or the user's own network
            cannot be imported or built.
    """
    own = build is not None or ":" in config.name
    if config.width is not None and (own or config.name in _torchvision_names()):
        network = "your own network" if own else config.name
        raise InputError(
            f"model.width: expected none for {network}, which has its own, got {config.width}; leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model", "built"))
        if build is not None or own:
            blocks = user.build_user_network(
                build or import_callable(config.name, key="model.name"),
                origin=f"model.name {config.name}" if build is None else _name_of(build),
                in_channels=in_channels,
                image_size=image_size,
                num_classes=num_classes,
            )
        else:
            blocks = _build_named(config, in_channels)
    _initialize(blocks if needed is None else blocks[needed.start : needed.stop], config, seed, own=own)
    return blocks


def _build_named(config: ModelConfig, in_channels: int) -> list[Block]:
    if config.name in CIFAR_NAMES:
        depth = int(config.name.removeprefix("resnet"))
        return cifar.build_cifar_resnet(depth, width=config.width or cifar.WIDTH, in_channels=in_channels)
    if config.name in _torchvision_names():
        name = config.name.removeprefix("torchvision/")
        builders = {vgg.NAMES: vgg.build_vgg, swin.NAMES: swin.build_swin}
        for names, build in builders.items():
            if name in names:
                return build(name, in_channels=in_channels)
        return torchvision_resnets.build_torchvision_resnet(name, in_channels=in_channels)
    if match := PREACT_NAME.fullmatch(config.name):
        num_groups, group_blocks = int(match[1]), int(match[2])
        width = config.width or preact.WIDTH
        return preact.build_preactivation_resnet(num_groups, group_blocks, width=width, in_channels=in_channels)
    raise InputError(_unknown(config.name))


def _initialize(blocks: Sequence[Block], config: ModelConfig, seed: int, *, own: bool) -> None:
    how: Initialization
    if config.initialization == "auto":
        # A Transformer's weights are not drawn like a convolution's.
        how = "built" if own or config.name.removeprefix("torchvision/") in swin.NAMES else "orthogonal"
    else:
        how = config.initialization
    for block in blocks:
        for name, module in block.modules:
            initialize(module, how, gain=config.gain, seed=derive_seed(seed, "model", name))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [*CIFAR_NAMES, *_torchvision_names(), "preact/10-1"], n=1)
    known = [*CIFAR_NAMES, *_torchvision_names(), "preact/<K>-<M>", "package.module:function"]
    offer = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"model.name: unknown network {name!r}; {offer}"


def _torchvision_names() -> tuple[str, ...]:
    return tuple(f"torchvision/{name}" for name in (*torchvision_resnets.NAMES, *vgg.NAMES, *swin.NAMES))


def _name_of(build: Build) -> str:
    return getattr(build, "__name__", type(build).__name__)
