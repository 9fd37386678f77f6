"""A trial run of a network on two samples, before anything starts.

A kernel that gets the wrong shape names itself; whoever wrote the network knows it by stages and blocks. So each block
is tried by itself, and the innermost module that failed tells what it expected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distblock.codecs.cast import Features, named_tensors
from distblock.errors import InputError
from distblock.learning.network import Block


def check_shapes(
    blocks: Sequence[Block], example: Features, *, stage_of: Callable[[int], int | None] = lambda _: None
) -> list[Features]:
    """Run blocks one after the other in training mode, without gradients.

    Args:
        blocks: the network; its running statistics change.
        example: a few samples of what enters the first.
        stage_of: a block's stage, where it is known, for the message.

    Returns:
        Each block's output.

    Raises:
        InputError: a block fails on what it receives, gives something else than floating-point tensors of as many
            samples, or writes to its input.
    """
    outputs: list[Features] = []
    with torch.no_grad():
        for index, block in enumerate(blocks):
            stage = stage_of(index)
            where = f"block {index} ({block.name})" if stage is None else f"stage {stage}, block {index} ({block.name})"
            example = _try(block, example, where)
            outputs.append(example)
    return outputs


def _try(block: Block, features: Features, where: str) -> Features:
    running = _Running()
    versions = [tensor._version for _, tensor in named_tensors(features)]
    handles = [
        part.register_forward_pre_hook(running.enter) for _, module in block.modules for part in module.modules()
    ]
    try:
        leaving, _ = block.run(features)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model: {where}: {running.expectation()}received {_shapes(features)}: {reason}") from None
    finally:
        for handle in handles:
            handle.remove()
    if [tensor._version for _, tensor in named_tensors(features)] != versions:
        raise InputError(f"model: {where} writes to its input in place; make its first operation out of place")
    _check_output(leaving, features, where)
    return leaving


class _Running:
    """The innermost module that began last, and what it received."""

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._received: Any = None

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        self._module = module
        self._received = inputs[0] if inputs else None

    def expectation(self) -> str:
        """What the module expected, if it says so in its attributes."""
        features = next((n for n in ("in_channels", "in_features", "num_features") if hasattr(self._module, n)), None)
        if features is None or not isinstance(self._received, Tensor):
            return ""
        wanted = getattr(self._module, features)
        got = tuple(self._received.shape)
        kind = type(self._module).__name__
        return f"{kind} expected shape {_pattern(kind, wanted)}, got {got}; the block "


def _pattern(kind: str, wanted: int) -> str:
    if kind == "Linear":
        return f"(N, ..., {wanted})"
    return f"(N, {wanted}, H, W)" if kind.endswith("2d") else f"(N, {wanted}, ...)"


def _check_output(leaving: Any, entering: Features, where: str) -> None:
    num_samples = len(next(iter(named_tensors(entering)))[1])
    tensors = leaving.values() if isinstance(leaving, dict) else leaving if isinstance(leaving, tuple) else [leaving]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"model: {where}: expected a tensor, or a tuple or dict of tensors, got {type(leaving).__name__}"
            )
        if tensor.ndim == 0 or len(tensor) != num_samples or tensor.numel() == 0:
            raise InputError(
                f"model: {where}: expected {num_samples} samples and no empty side, got shape {tuple(tensor.shape)}"
            )


def _shapes(features: Features) -> str:
    return ", ".join(str(tuple(tensor.shape)) for _, tensor in named_tensors(features))
