"""The user's own network: a callable given in Python, or ``package.module:function``.

It is called as ``build(in_channels, image_size, num_classes)`` and returns its blocks, modules that are applied one
after the other. A block tells its residuals by a method ``forward_with_residuals`` (see
`distblock.learning.network.HandsOutResiduals`); torchvision's residual blocks need none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from distblock.errors import InputError
from distblock.learning.network import Block

Build = Callable[[int, int, int], Sequence[nn.Module]]
"""``build(in_channels, image_size, num_classes)``."""


def build_user_network(
    build: Build, *, origin: str, in_channels: int, image_size: int, num_classes: int
) -> list[Block]:
    """Call the user's function; its m-th module is block ``blocks.<m>``.

    Args:
        build: the user's function.
        origin: how errors name it.
        in_channels, image_size, num_classes: its arguments.

    Raises:
        InputError: it does not take three arguments, fails, or returns anything but modules.
    """
    _check_signature(build, origin)
    try:
        returned: Any = build(in_channels, image_size, num_classes)
    except Exception as error:
        call = f"{origin}({in_channels}, {image_size}, {num_classes})"
        raise InputError(f"{call}: expected a list of blocks, but it failed: {_one_line(error)}") from error
    if not isinstance(returned, Iterable):
        raise InputError(
            f"{origin}: expected a list of torch.nn.Module, one a block, got {type(returned).__name__}; return a list"
        )
    modules = list(returned)
    if not modules:
        raise InputError(f"{origin}: expected at least one block, got an empty list; return a list of torch.nn.Module")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{origin}: expected a list of torch.nn.Module, got {type(module).__name__} at position {index};"
                " wrap it in a module"
            )
    return [Block(name=f"blocks.{m}", modules=((f"blocks.{m}", module),)) for m, module in enumerate(modules)]


def _check_signature(build: Build, origin: str) -> None:
    signature = inspect.signature(build)
    try:
        signature.bind(3, 32, 10)
    except TypeError:
        raise InputError(
            f"{origin}: expected a function of (in_channels, image_size, num_classes), got one of {signature};"
            " change its parameters"
        ) from None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
