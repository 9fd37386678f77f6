"""The same hop by Ray Direct Transport over gloo: the tensor stays with its sender until the receiver asks for it.

It is measured, and not offered: what it hands out dies with its worker, where the driver owns what goes through the
object store. It takes results of actor methods with one value alone, as arguments of their own, which Ray fetches
before the method starts: nobody sees what that cost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import ray
import torch
from ray.experimental.collective import create_collective_group, destroy_all_collective_groups
from torch import Tensor

MOST_HOPS = 20
"""A round and size, one by one; fewer where they would come to more than `MOST_BYTES`."""

MOST_BYTES = 2**28


class DirectRelay:
    """One end; made an actor by `measure_direct`."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._features = torch.empty(0)

    def make(self, num_bytes: int) -> None:
        """Have a tensor of so many bytes at hand."""
        self._features = torch.rand(num_bytes // 4)

    @ray.method(tensor_transport="gloo")
    def send(self) -> Tensor:
        """Hand it out."""
        return self._features

    def take(self, tensor: Tensor) -> int:
        """Take one in; how many values it has."""
        return tensor.numel()


def measure_direct(sizes: Sequence[int], nodes: Sequence[str], *, rounds: int) -> dict[int, list[float]]:
    """Seconds of hops one by one, from asking the sender to the receiver's answer, by size.

    A Ray has to be there.

    Args:
        sizes: bytes of activations.
        nodes: the addresses of the sender's and the receiver's.
        rounds: how many, beside one that does not count.
    """
    kind = ray.remote(num_cpus=0)(DirectRelay)
    # Ray's types for actors and for this call do not agree.
    sender, receiver = (cast("Any", kind.options(resources={f"node:{node}": 0.001}).remote()) for node in nodes)
    try:
        create_collective_group([sender, receiver], backend="gloo")
        found: dict[int, list[float]] = {size: [] for size in sizes}
        for turn in range(rounds + 1):
            for size in sizes:
                ray.get(sender.make.remote(size))
                count = min(MOST_HOPS, max(2, MOST_BYTES // size))
                seconds = [_hop(sender, receiver, size) for _ in range(count)]
                # The first round warms up.
                found[size] += seconds if turn else []
        return found
    finally:
        destroy_all_collective_groups()
        ray.kill(sender)
        ray.kill(receiver)


def _hop(sender: Any, receiver: Any, size: int) -> float:
    begun_s = time.perf_counter()
    count = ray.get(receiver.take.remote(sender.send.remote()))
    seconds = time.perf_counter() - begun_s
    assert count == size // 4
    return seconds
