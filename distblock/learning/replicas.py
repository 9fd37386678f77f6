"""Data parallelism within a stage: each of R replicas takes a share of every microbatch, and gradients are averaged.

What replicas have computed is added in the order of their numbers. So R processes get the same bits as a plain loop
over R shares, and after every microbatch weights, gradients and running statistics are the same in all of them. Those
of BatchNorm are means over the replicas, weighed by samples; each replica normalizes by its own share.

Source: Li et al. 2020, "PyTorch Distributed"; the fixed order, and statistics that meet, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class PeersGoneError(RuntimeError):
    """Another replica does not answer any more; without it there is no sum."""


class Replicas(Protocol):
    """The replicas of one process's stages."""

    @property
    def count(self) -> int:
        """R."""
        ...

    @property
    def own(self) -> range:
        """Those that this process computes."""
        ...

    def meet(self) -> None:
        """Wait until all are there; before anything else: some modules talk to the others by themselves.

        Raises:
            PeersGoneError: another process is gone.
        """
        ...

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over all replicas, in the order of their numbers, of what each of them has.

        Args:
            parts: of those of this process, all of one shape.

        Raises:
            PeersGoneError: another process is gone.
        """
        ...


class AllHere:
    """All replicas in this process, one after the other: the plain loop. Alone, there is nothing to add.

    Args:
        count: R.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.own = range(count)

    def meet(self) -> None:
        """All are there."""

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum, in order."""
        return add_in_order(parts)


def add_in_order(parts: Sequence[Tensor]) -> Tensor:
    """Their sum, the first with the second, then with the third, and so on."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class Averaging:
    """Gradients and running statistics of a stage, from the replicas' own to those that all share.

    Used once a microbatch: `begin`; for each own replica `restore`, its pass forward, `take`; for each its pass
    backward, `take_gradients`; `finish`.

    Args:
        module: the stage's.
        replicas: who takes part.
    """

    def __init__(self, module: nn.Module, replicas: Replicas) -> None:
        self._replicas = replicas
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # By name: a module may put another tensor in a buffer's place.
        self._owners = [
            (owner, name) for owner in module.modules() for name, b in owner._buffers.items() if b is not None
        ]
        self._gradients: list[Tensor | None] = []
        self._before: list[Tensor] = []
        self._seen: list[tuple[int, int]] = []
        self._moved: list[Tensor] = []
        self._parts: list[Tensor] = []

    def begin(self) -> None:
        """A microbatch comes: what earlier ones of its batch have left is set aside."""
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._clear()
        # One replica alone has nothing to start again from.
        self._before = [buffer.clone() for buffer in self._buffers] if len(self._replicas.own) > 1 else []
        self._parts = []

    def restore(self) -> None:
        """The next replica starts from where all started."""
        for buffer, before in zip(self._buffers, self._before, strict=False):
            buffer.data.copy_(before)  # unseen by autograd, whose graph of the replica before is still needed
        self._seen = [(id(buffer), buffer._version) for buffer in self._buffers]

    def take(self, num_samples: int) -> None:
        """A replica has passed its share forward; keep the statistics that it moved.

        Args:
            num_samples: of the share.
        """
        # Integers count microbatches: they are the same in all replicas. torch's own norms do not say that they write,
        # which those that are frozen do not.
        self._moved = [
            buffer
            for (owner, _), buffer, seen in zip(self._owners, self._buffers, self._seen, strict=True)
            if buffer.is_floating_point()
            and ((isinstance(owner, _NormBase) and owner.training) or (id(buffer), buffer._version) != seen)
        ]
        statistics = [buffer.reshape(-1) * num_samples for buffer in self._moved]
        count = torch.full((1,), float(num_samples), device=self._device)
        self._parts.append(torch.cat([count, *statistics]))

    def take_gradients(self, replica: int) -> None:
        """Its pass backward has left gradients; keep them beside its statistics.

        Args:
            replica: which of this process's, counted from 0.
        """
        flat = [
            torch.zeros_like(parameter).reshape(-1) if parameter.grad is None else parameter.grad.reshape(-1)
            for parameter in self._parameters
        ]
        self._parts[replica] = torch.cat([self._parts[replica], *flat])
        self._clear()

    def finish(self) -> None:
        """Add up; every replica goes on with the same.

        Raises:
            PeersGoneError: another replica is gone.
        """
        total = self._replicas.add(self._parts)
        num_samples, place = total[0], 1
        for buffer in self._moved:
            buffer.data.copy_((total[place : place + buffer.numel()] / num_samples).view_as(buffer))
            place += buffer.numel()
        for parameter, before in zip(self._parameters, self._gradients, strict=True):
            gradient = total[place : place + parameter.numel()].view_as(parameter).to(parameter.dtype)
            parameter.grad = gradient.clone() if before is None else before + gradient
            place += parameter.numel()

    def _clear(self) -> None:
        """No gradients yet."""
        for parameter in self._parameters:
            parameter.grad = None

    @property
    def _buffers(self) -> list[Tensor]:
        """As they are now."""
        return [owner.get_buffer(name) for owner, name in self._owners]

    @property
    def _device(self) -> torch.device:
        return self._parameters[0].device
