"""A trial run on a few samples, before any worker starts.

Left to itself, a misfit shows minutes after the start, in a message of torch's that names a kernel. Here the block is
named, the layer inside it that failed, what that layer expects and what it received.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from distblock.codecs.cast import named_tensors
from distblock.errors import InputError
from distblock.learning.network import Block, Features, versions_of

Calls = list[tuple[nn.Module, Any]]
"""Modules being run, outermost first, each with its first argument."""


@contextmanager
def trial(blocks: Sequence[Block]) -> Iterator[None]:
    """Training mode without gradients; modes, buffers and the random generator are put back afterwards."""
    modules = nn.ModuleList(module for block in blocks for _, module in block.modules)
    modes = [(module, module.training) for module in modules.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in modules.buffers()]
    modules.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, saved in buffers:
            buffer.copy_(saved)


def try_block(block: Block, where: str, features: Features) -> Features:
    """Run a block, within a `trial`, and see that it does what a block has to.

    Args:
        block: the block.
        where: how errors name it.
        features: what enters it.

    Returns:
        What leaves it.

    Raises:
        InputError: it fails, writes to its input, or puts out something else than tensors of as many samples.
    """
    before = versions_of(features)
    with _running([module for _, module in block.modules]) as calls:
        try:
            leaving, _ = block.run(features)
        except Exception as error:
            raise InputError(f"{where}: {_describe_failure(calls, error, features)}") from error
    if versions_of(features) != before:
        raise InputError(
            f"{where}: expected not to write to its input, but it does, in place; the stage before still needs it: make"
            " the operation out of place (inplace=False, x = x + y instead of x += y)"
        )
    _check_output(leaving, where, num_samples=len(next(iter(named_tensors(features)))[1]))
    return leaving


def _check_output(leaving: Any, where: str, *, num_samples: int) -> None:
    parts = leaving.values() if isinstance(leaving, dict) else leaving if isinstance(leaving, tuple) else [leaving]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if not tensors or len(tensors) < len(parts):
        raise InputError(
            f"{where}: expected a tensor, or a tuple or dictionary of tensors, to leave it, got {_shapes(leaving)};"
            " change what its forward returns"
        )
    if any(tensor.shape[:1] != (num_samples,) for tensor in tensors):
        raise InputError(
            f"{where}: expected {num_samples} samples along the first dimension to leave it, as entered it, got"
            f" {_shapes(leaving)}; keep samples along the first dimension"
        )


@contextmanager
def _running(modules: Sequence[nn.Module]) -> Iterator[Calls]:
    """Follow which modules, submodules too, are being run; after an exception, the last one raised it."""
    calls: Calls = []

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.append((module, arguments[0] if arguments else None))

    def leave(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        calls.pop()

    handles = []
    for submodule in {each for module in modules for each in module.modules()}:
        handles.append(submodule.register_forward_pre_hook(enter))
        handles.append(submodule.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _describe_failure(calls: Calls, error: Exception, features: Features) -> str:
    """One line: what the failing module expects, what it received, and torch's message.

    Args:
        calls: what ran when it failed.
        error: the exception.
        features: what entered the block; named where the block failed outside of any module.
    """
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not calls:
        return f"received {_shapes(features)}: {message}"
    module, received = calls[-1]
    return f"{_expectation(module)}, received {_shapes(received)}: {message}"


def _shapes(features: Any) -> str:
    """Shape of a tensor, or of each tensor of a tuple or dictionary."""
    if isinstance(features, Tensor):
        return str(tuple(features.shape))
    if isinstance(features, dict):
        return "{" + ", ".join(f"{key}: {_shapes(value)}" for key, value in features.items()) + "}"
    if isinstance(features, tuple):
        return "[" + ", ".join(_shapes(value) for value in features) + "]"
    return type(features).__name__


def _expectation(module: nn.Module) -> str:
    layer = f"{type(module).__name__}({module.extra_repr()})"
    if isinstance(module, _ConvNd):
        return f"expects C={module.in_channels} input channels ({layer})"
    if isinstance(module, nn.Linear):
        return f"expects a last dimension of {module.in_features} ({layer})"
    if isinstance(module, _BatchNorm):
        return f"expects C={module.num_features} channels ({layer})"
    return f"failed in {layer}"
