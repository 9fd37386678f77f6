"""The user's own network: a function that returns its blocks in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from distblock.errors import InputError
from distblock.imports import import_callable
from distblock.learning.network import Block


def build_blocks(
    name: str,
    build: Callable[[int, int, int], Sequence[nn.Module]] | None,
    in_channels: int,
    image_size: int,
    num_classes: int,
) -> list[Block]:
    """Call the user's function.

    Args:
        name: ``package.module:function``, for messages and where ``build`` is None.
        build: the function itself.
        in_channels, image_size, num_classes: its arguments.

    Raises:
        InputError: it cannot be imported, fails, or returns something else than blocks.
    """
    function = build or import_callable(name, key="model.name")
    called = f"model: {getattr(function, '__name__', name)}({in_channels}, {image_size}, {num_classes})"
    try:
        modules = function(in_channels, image_size, num_classes)
    except Exception as error:
        raise InputError(
            f"{called}: expected the blocks for (in_channels, image_size, num_classes), got"
            f" {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(modules, (Sequence, nn.Sequential, nn.ModuleList)) or not len(modules):
        raise InputError(f"{called}: expected a list of blocks, got {type(modules).__name__}: return at least one")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise InputError(f"{called}: expected an nn.Module as block {index}, got {type(module).__name__}")
    return [
        Block(name=f"blocks.{index}", modules=((f"blocks.{index}", module),)) for index, module in enumerate(modules)
    ]
